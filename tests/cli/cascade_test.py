#!/usr/bin/env python3
"""cascade as a user meets it: a synthetic cascade exported, trained, served; several servers that share a price.

    cascade_test.py COMMAND [test names]
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

COMMAND = None
BODY = {"features": [0.3, -1.2, 0.7, 0.1, 0.4, -0.3, 1.1, 0.2, -0.6, 0.9, 0.05, -0.8]}


def wait_for(done, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.05)
    return False


class Server:
    """A process that is killed at the end; what it says is kept."""

    def __init__(self, case, words):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(words, stdout=self.log, stderr=self.log, env=case.env, cwd=case.root)
        case.addCleanup(self.close)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.kill()
        self.log.close()

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def port(self, before):
        assert wait_for(lambda: re.search(before + r"(\d+)", self.said()) or self.process.poll() is not None), self.said()
        found = re.search(before + r"(\d+)", self.said())
        assert found, self.said()
        return int(found.group(1))


class CascadeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = pathlib.Path(cls.folder.name)
        cls.env = dict(os.environ, FRUGAL_LEDGER=str(cls.root / "ledger.db"), XDG_CONFIG_HOME=str(cls.root / "config"),
                       XDG_STATE_HOME=str(cls.root / "state"))
        cls.run_ok("cascade", "simulate", "--export", "shop")
        cls.run_ok("cascade", "train", "shop", "--epochs", "2", "--logs", "2", "--out", "reward.frm")

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    @classmethod
    def frugal(cls, *args):
        return subprocess.run([COMMAND, *args], capture_output=True, text=True, env=cls.env, cwd=cls.root, timeout=600)

    @classmethod
    def run_ok(cls, *args):
        done = cls.frugal(*args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def serve(self, *options):
        server = Server(self, [COMMAND, "cascade", "serve", "shop", "-m", "reward.frm", "--port", "0", *options])
        server.url = f"http://127.0.0.1:{server.port('http://127.0.0.1:')}"
        return server

    def get(self, server, path="/v1/state"):
        with urllib.request.urlopen(server.url + path, timeout=20) as answer:
            return json.load(answer)

    def post(self, server, body, path="/v1/decide"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(server.url + path, data), timeout=20) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def test_serves_and_writes_the_ledger(self):
        server = self.serve("--budget", "1e9", "--window", "5", "--ledger-every", "0.2")
        status, answer = self.post(server, BODY)
        self.assertEqual(status, 200)
        self.assertLessEqual({"chain", "index", "flops", "price", "kind", "reward"}, set(answer))
        self.assertEqual(self.post(server, b"{")[0], 400)
        self.assertEqual(self.post(server, BODY, "/v1/recommend")[0], 404)  # it decides only
        server.process.send_signal(signal.SIGINT)
        self.assertEqual(server.process.wait(60), 0)
        self.assertIn("cascade", self.run_ok("report", "--by", "kind"))

    def test_a_budget_that_cannot_be_met_serves_the_cheapest_and_says_so(self):
        server = self.serve("--budget", "1", "--window", "2")
        cheapest = None

        def told():
            nonlocal cheapest
            cheapest = self.post(server, BODY)[1]
            return self.get(server)["unmeetable"]

        self.assertTrue(wait_for(told))
        self.assertEqual(cheapest["index"], 0)

    def test_reports_a_trained_cascade(self):
        said = self.run_ok("cascade", "report", "shop", "--seeds", "1", "--no-day", "--out", "r.html", "--json", "r.json")
        self.assertIn("fewer FLOPs", said)
        page, figures = (self.root / "r.html").read_text(), json.loads((self.root / "r.json").read_text())
        self.assertEqual(page.count("<svg"), 1)
        for words in ("A request, side by side", "clicks a request", "gCO2e", "DCAF", "at half of the best static chain"):
            self.assertIn(words.lower(), page.lower())
        self.assertNotRegex(page, r"<(script|link|img)|https?://|nan\b")  # one file, without outside resources
        for arm in figures["pfec"]:
            self.assertGreater(arm["energy_j"]["value"], 0)
            self.assertEqual(arm["performance"]["provenance"], "measured")
            self.assertLessEqual(arm["carbon_gco2e"]["low"], arm["carbon_gco2e"]["high"])
        self.assertEqual({"static", "dcaf", "cras", "greenflow", "oracle"}, set(figures["curves"]))

    def test_a_menu_is_picked_on_the_fitting_requests(self):
        server = self.serve("--budget", "1e9", "--menu", "3")
        menu = self.get(server)["menu"]
        self.assertIn(len(menu), (1, 2, 3))
        for scale in (-1, 0, 0.5, 1, 2):
            body = {"features": [scale * value for value in BODY["features"]]}
            self.assertIn(self.post(server, body)[1]["chain"], menu)
        self.assertNotIn("menu", self.get(self.serve("--budget", "1e9")))

    def test_a_damaged_model_is_refused_at_the_start_and_while_serving(self):
        bad = self.root / "bad.frm"
        bad.write_bytes((self.root / "reward.frm").read_bytes()[:100])
        done = self.frugal("cascade", "serve", "shop", "-m", "bad.frm", "--port", "0")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("bad.frm", done.stderr)
        live = self.root / "live.frm"
        live.write_bytes((self.root / "reward.frm").read_bytes())
        server = Server(self, [COMMAND, "cascade", "serve", "shop", "-m", "live.frm", "--port", "0"])
        server.url = f"http://127.0.0.1:{server.port('http://127.0.0.1:')}"
        before = self.post(server, BODY)[1]
        live.write_bytes(b"not a model")
        os.utime(live, (time.time() + 100, time.time() + 100))
        self.assertTrue(wait_for(lambda: self.get(server)["models_refused"] == 1))
        self.assertEqual(self.post(server, BODY)[1], before)

    def test_several_share_a_price_through_the_death_of_leader_and_server(self):
        (self.root / "nats.conf").write_text(f"host: 127.0.0.1\nport: -1\njetstream {{ store_dir: \"{self.root}/nats\" }}\n")
        nats = Server(self, ["nats-server", "-c", "nats.conf"])
        port = nats.port(r"client connections on 127.0.0.1:")
        servers = [self.serve("--budget", "1e7", "--window", "2", "--share", f"nats://127.0.0.1:{port}", "--share-id", f"a{i}",
                              "--share-sync", "0.05", "--share-lease", "0.6", "--share-stale", "1.2", "--no-ledger")
                   for i in range(3)]
        live = list(servers)

        def leaders():
            return [s for s in live if self.get(s)["share"]["leading"]]

        def one_price():
            for server in live:
                self.post(server, {"requests": [BODY["features"]] * 50})
            states = [self.get(s) for s in live]
            return (len(leaders()) == 1 and states[0]["price"] > 0 and len({s["price"] for s in states}) == 1
                    and {s["share"]["allocators"] for s in states} == {len(live)})

        self.assertTrue(wait_for(one_price))
        # What one spends, all count.
        self.assertTrue(all(self.get(s)["window_flops"] > 0 or one_price() for s in live))
        dead = leaders()[0]
        dead.kill()
        live.remove(dead)
        self.assertTrue(wait_for(one_price))
        nats.kill()
        self.assertTrue(wait_for(lambda: not any(self.get(s)["share"]["connected"] for s in live)))
        for server in live:
            self.assertEqual(self.post(server, BODY)[0], 200)  # the last good price serves
        self.assertTrue(wait_for(lambda: all(self.get(s)["share"]["isolated"] for s in live)))
        for server in live:
            self.assertEqual(self.post(server, BODY)[0], 200)  # and then each its own

    def test_options_that_make_no_sense_are_refused(self):
        for words, message in ((["--shadow", "none"], "there is no chain"), (["--share", "x", "--share-lease", "0.1"], "lease"),
                               (["--controller", "magic"], "magic"), (["--items"], "names no")):
            done = self.frugal("cascade", "serve", "shop", "-m", "reward.frm", "--port", "0", *words)
            self.assertNotEqual(done.returncode, 0, words)
            self.assertIn(message, done.stderr)
        self.assertNotEqual(self.frugal("cascade", "serve", "nowhere", "-m", "reward.frm").returncode, 0)


if __name__ == "__main__":
    COMMAND = os.path.abspath(sys.argv.pop(1))
    unittest.main()
