"""The meter's commands with a ledger, a queue and folders of their own: what the tests of meter, report and jobs share."""

import datetime
import http.server
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import unittest

BUSY = "i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done"
COMMAND = []


class Harness(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.folder.name)
        self.env = dict(os.environ, FRUGAL_LEDGER=str(self.root / "ledger.db"), FRUGAL_QUEUE=str(self.root / "jobs.db"),
                        XDG_CONFIG_HOME=str(self.root / "config"), XDG_STATE_HOME=str(self.root / "state"), TZ="UTC")

    def tearDown(self):
        self.folder.cleanup()

    def frugal(self, *args, stdin=b""):
        return subprocess.run([*COMMAND, *args], input=stdin, capture_output=True, env=self.env, timeout=900, cwd=self.root)

    def answered(self, *args, **kwargs):
        done = self.frugal(*args, **kwargs)
        self.assertEqual(done.returncode, 0, done.stderr.decode(errors="replace"))
        return done.stdout.decode()

    def json(self, *args):
        return json.loads(self.answered(*args, "--json"))

    def refused(self, code, message, *args, **kwargs):
        done = self.frugal(*args, **kwargs)
        self.assertEqual(done.returncode, code, done.stderr.decode(errors="replace"))
        self.assertIn(message, done.stderr.decode(errors="replace"))

    def carbon_file(self, hours_before=24 * 70, hours_after=0, name="carbon.csv"):
        """Clean around noon, in the format of Electricity Maps' export."""
        now = datetime.datetime.now(datetime.timezone.utc).replace(minute=0, second=0, microsecond=0)
        lines = ["Datetime (UTC),Country,Zone Name,Zone Id,Carbon Intensity gCO\u2082eq/kWh (direct),"
                 "Carbon Intensity gCO\u2082eq/kWh (LCA),Low Carbon Percentage"]
        for h in range(-hours_before, hours_after + 1):
            at = now + datetime.timedelta(hours=h)
            grams = 200 + 150 * math.cos(2 * math.pi * (h - 6) / 24)
            lines.append(f"{at:%Y-%m-%d %H:%M:%S},X,X,XX,{grams:.2f},{grams:.2f},50")
        path = self.root / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    def serve(self, answers):
        """An HTTP server of these answers by path; a path without one gives 404. What was posted is kept."""
        posted = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self, status, body):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def do_GET(self):
                posted.append(self.headers.get("auth-token"))
                self.answer(*((200, answers[self.path]) if self.path in answers else (404, "")))

            def do_POST(self):
                posted.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.answer(200, "{}")

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return f"http://127.0.0.1:{server.server_port}", posted, server

    def metered(self, *args):
        done = self.frugal("meter", "run", "--json", *args)
        return json.loads(done.stderr.decode())

    def submit(self, *args):
        return self.json("jobs", "submit", *args) if "--" not in args else json.loads(
            self.answered("jobs", "submit", "--json", *args))

    def state(self, number):
        return next(j for j in self.json("jobs", "list", "--all") if j["id"] == number)

    def wait_for(self, number, state):
        for _ in range(600):  # a limit for hangs only
            got = self.state(number)
            if got["state"] == state:
                return got
            time.sleep(0.1)
        self.fail(f"job {number} is {got['state']}, not {state}")


def main():
    COMMAND.append(os.path.abspath(sys.argv[1]))
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
