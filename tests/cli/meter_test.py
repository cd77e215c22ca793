#!/usr/bin/env python3
"""meter, report and jobs as a user meets them: real processes, good input and bad.

    meter_test.py COMMAND [test names]
"""

import datetime
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

COMMAND = None
BUSY = "i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done"


class MeterTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.folder.name)
        self.env = dict(os.environ, FRUGAL_LEDGER=str(self.root / "ledger.db"), FRUGAL_QUEUE=str(self.root / "jobs.db"),
                        XDG_CONFIG_HOME=str(self.root / "config"), XDG_STATE_HOME=str(self.root / "state"), TZ="UTC")

    def tearDown(self):
        self.folder.cleanup()

    def frugal(self, *args, stdin=b""):
        return subprocess.run([COMMAND, *args], input=stdin, capture_output=True, env=self.env, timeout=900, cwd=self.root)

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

    # meter run

    def test_run_passes_exit_codes_and_output_through(self):
        done = self.frugal("meter", "run", "--", "sh", "-c", "echo out; exit 5")
        self.assertEqual((done.returncode, done.stdout), (5, b"out\n"))
        self.assertEqual(self.frugal("meter", "run", "--", "/no/such/command").returncode, 127)
        self.assertEqual(self.frugal("meter", "run", "--", "/").returncode, 126)
        self.assertEqual(self.frugal("meter", "run", "--", "sh", "-c", "kill -9 $$").returncode, 137)

    def metered(self, *args):
        done = self.frugal("meter", "run", "--json", *args)
        return json.loads(done.stderr.decode())

    def test_every_figure_has_its_band_and_provenance(self):
        got = self.metered("--intensity", "300", "--", "sh", "-c", BUSY)
        for key in ("energy_j", "cpu_j", "memory_j", "carbon_g", "average_w"):
            self.assertLessEqual(got[key]["low"], got[key]["value"], key)
            self.assertLessEqual(got[key]["value"], got[key]["high"], key)
            self.assertIn(got[key]["provenance"], ("measured", "modelled", "assumed"))
        self.assertAlmostEqual(got["carbon_g"]["value"], got["energy_j"]["value"] * 300 / 3.6e6, places=12)

    def test_no_place_is_ever_guessed(self):
        got = self.metered("--", "true")
        self.assertIsNone(got["carbon_g"])
        self.assertEqual(got["region"], "unknown")
        self.refused(3, "no annual carbon intensity", "meter", "run", "--region", "Atlantis", "--", "true")

    def test_a_short_command_repeats_within_its_band(self):
        got = [self.metered("--", "sh", "-c", "sleep 0.01") for _ in range(8)]
        middle = sorted(g["energy_j"]["value"] for g in got)[4]
        inside = sum(g["energy_j"]["low"] <= middle <= g["energy_j"]["high"] for g in got)
        self.assertGreaterEqual(inside, 7, got)

    def test_bad_carbon_data(self):
        path = self.root / "bad.csv"
        path.write_text("Datetime (UTC),Carbon Intensity gCO2eq/kWh (LCA)\n2026-01-01 00:00:00,wet\n")
        self.refused(3, "bad.csv", "meter", "run", "--carbon-file", str(path), "--", "true")
        self.refused(3, "none.csv", "meter", "run", "--carbon-file", "none.csv", "--", "true")
        stale = self.carbon_file(hours_before=100)
        text = pathlib.Path(stale).read_text().splitlines()
        pathlib.Path(stale).write_text("\n".join(text[:30]) + "\n")
        done = self.frugal("meter", "run", "--carbon-file", stale, "--", "true")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("does not cover the present", done.stderr.decode())

    def test_concurrent_runs_sum_to_no_more_than_the_host(self):
        runs = [subprocess.Popen([COMMAND, "meter", "run", "--json", "--", "sh", "-c", BUSY], stderr=subprocess.PIPE,
                                 env=self.env) for _ in range(8)]
        got = [json.loads(run.communicate(timeout=900)[1]) for run in runs]
        # Everyone's power over its own time cannot exceed the host's at full load.
        doctor = self.json("meter", "doctor")
        longest = max(g["wall_s"] for g in got)
        self.assertLessEqual(sum(g["cpu_j"]["value"] for g in got), 1.02 * doctor["model_full_w"] * longest)
        self.assertEqual(len(json.loads(self.answered("report", "--format", "json"))), 1)

    # calibrate and watch

    def test_calibration_is_stored_used_and_forgotten(self):
        self.refused(2, "two points", "meter", "calibrate", "--point", "0:5")
        self.refused(2, "no point", "meter", "calibrate", "--point", "zero:5")
        self.refused(2, "less", "meter", "calibrate", "--point", "0:50", "--point", "1:10")
        self.assertIn("stored", self.answered("meter", "calibrate", "--point", "0:5", "--point", "100%:40"))
        doctor = self.json("meter", "doctor")
        self.assertAlmostEqual(doctor["model_idle_w"], 5, places=6)
        self.assertAlmostEqual(doctor["model_full_w"], 40, places=6)
        self.assertIn("calibrated at 2 points", doctor["description"])
        (self.root / "config/frugal/meter.json").write_text("{")
        self.refused(3, "calibrat", "meter", "doctor")
        self.answered("meter", "calibrate", "--remove")
        self.assertNotIn("calibrated", self.json("meter", "doctor")["description"])

    def test_watch(self):
        lines = [json.loads(line) for line in self.answered("meter", "watch", "-n", "3", "--interval", "0.1", "--json").splitlines()]
        self.assertEqual(len(lines), 3)
        self.assertGreater(lines[0]["cpu_w"]["value"], 0)

    # report

    def test_reports_and_exports(self):
        for i in range(3):
            self.frugal("meter", "run", "-q", "--intensity", "200", "--project", 'p"\\\n', "--model", "m", "--", "true")
        groups = json.loads(self.answered("report", "--by", "project", "--format", "json", "--embodied-kg", "1000"))
        self.assertEqual(groups[0]["entries"], 3)
        self.assertGreater(groups[0]["sci_g_per_unit"]["value"], groups[0]["embodied_g"] / 3)
        self.check_prometheus(self.answered("report", "--format", "prometheus"))
        otlp = json.loads(self.answered("report", "--format", "otlp"))
        names = [m["name"] for m in otlp["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]]
        self.assertIn("frugal.energy_joules", names)
        self.assertEqual(len(self.answered("report", "--format", "csv").strip().split("\n")), 4 + 3)  # a line break in a field
        page = self.root / "report.html"
        self.answered("report", "--html", str(page))
        html = page.read_text()
        self.assertIn("<svg", html)
        self.assertNotIn("http", html)

    def check_prometheus(self, text):
        """What `promtool check metrics` asks of the text format: names, escapes, HELP and TYPE once and before the samples,
        counters that end in _total, no series twice, a last newline."""
        self.assertTrue(text.endswith("\n"))
        typed, seen = {}, set()
        for line in text[:-1].split("\n"):
            if line.startswith("# HELP "):
                continue
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ")
                self.assertNotIn(name, typed)
                typed[name] = kind
                continue
            match = re.fullmatch(r'([a-zA-Z_:][a-zA-Z0-9_:]*)\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\n"])*",?)*)\} (\S+)', line)
            self.assertIsNotNone(match, line)
            self.assertIn(match[1], typed)
            if typed[match[1]] == "counter":
                self.assertTrue(match[1].endswith("_total"))
                self.assertGreaterEqual(float(match[3]), 0)
            self.assertNotIn((match[1], match[2]), seen)
            seen.add((match[1], match[2]))
        self.assertTrue(seen)

    def test_serve_answers_scrapes_on_loopback(self):
        self.frugal("meter", "run", "-q", "--", "true")
        server = subprocess.Popen([COMMAND, "meter", "serve", "--port", "0"], stderr=subprocess.PIPE, env=self.env)
        try:
            url = re.search(r"http://\S+/metrics", server.stderr.readline().decode())[0]
            self.assertIn("127.0.0.1", url)
            with urllib.request.urlopen(url, timeout=60) as answer:
                self.assertIn("text/plain; version=0.0.4", answer.headers["Content-Type"])
                self.check_prometheus(answer.read().decode())
            with self.assertRaises(urllib.error.HTTPError):
                urllib.request.urlopen(url.replace("/metrics", "/other"), timeout=60)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)
            server.stderr.close()

    # jobs

    def submit(self, *args):
        return self.json("jobs", "submit", *args) if "--" not in args else json.loads(
            self.answered("jobs", "submit", "--json", *args))

    def test_submit_plan_run_list(self):
        carbon = self.carbon_file()
        job = self.submit("--by", "30h", "--takes", "2h", "--interruptible", "--carbon-file", carbon, "--", "sh", "-c", "echo hi")
        self.assertTrue(job["meets_deadline"])
        self.assertGreater(job["expected_saving_percent"], 20)  # the file is at its dirtiest six hours from now
        plan = self.json("jobs", "plan")
        self.assertEqual(plan["jobs"][0]["runs"], job["runs"])
        self.assertLessEqual(job["runs"][-1]["end"], job["deadline"])
        # Nothing to wait for: no slack.
        urgent = self.submit("--by", "1s", "--takes", "1s", "--", "sh", "-c", "echo now; exit 3")
        self.assertFalse(plan["jobs"][0]["id"] == urgent["id"])
        runner = subprocess.Popen([COMMAND, "jobs", "run", "--poll", "0.1"], env=self.env, stderr=subprocess.DEVNULL)
        try:
            done = self.wait_for(urgent["id"], "failed")
            self.assertEqual(done["exit_code"], 3)
            self.assertEqual(pathlib.Path(urgent["log"]).read_text(), "now\n")
            self.assertEqual(self.state(job["id"])["state"], "waiting")
        finally:
            runner.send_signal(signal.SIGINT)
            runner.wait(60)
        self.answered("jobs", "exec", str(job["id"]))
        got = self.state(job["id"])
        self.assertEqual((got["state"], got["exit_code"]), ("done", 0))
        self.assertIsNotNone(got["saved_percent"])
        entries = self.answered("report", "--kind", "job", "--format", "csv")
        self.assertIn("echo hi", entries)

    def state(self, number):
        return next(j for j in self.json("jobs", "list", "--all") if j["id"] == number)

    def wait_for(self, number, state):
        for _ in range(600):  # a limit for hangs only
            got = self.state(number)
            if got["state"] == state:
                return got
            time.sleep(0.1)
        self.fail(f"job {number} is {got['state']}, not {state}")

    def test_a_killed_runner_loses_nothing(self):
        job = self.submit("--by", "1s", "--takes", "1s", "--", "sh", "-c", "echo begun >> begun; sleep 1; echo ended >> ended")
        runner = subprocess.Popen([COMMAND, "jobs", "run", "--poll", "0.1"], env=self.env, stderr=subprocess.DEVNULL)
        self.wait_for(job["id"], "running")
        runner.kill()
        runner.wait()
        later = subprocess.run([COMMAND, "jobs", "run", "--until-empty", "--poll", "0.1"], env=self.env, capture_output=True,
                               timeout=900)
        self.assertEqual(later.returncode, 0)
        self.assertEqual(self.state(job["id"])["state"], "done")
        self.assertEqual((self.root / "begun").read_text(), "begun\n")
        self.assertEqual((self.root / "ended").read_text(), "ended\n")

    def test_last_years_file_stands_in_and_says_so(self):
        lines = ["Datetime (UTC),Carbon Intensity gCO2eq/kWh (LCA)"]
        at = datetime.datetime(2022, 1, 1)
        for h in range(8760):
            lines.append(f"{at + datetime.timedelta(hours=h):%Y-%m-%d %H:%M:%S},{200 + 100 * math.cos(h * math.pi / 12):.1f}")
        path = self.root / "2022.csv"
        path.write_text("\n".join(lines) + "\n")
        job = self.submit("--by", "26h", "--takes", "3h", "--carbon-file", str(path), "--", "true")
        self.assertIn("stand in", job["note"])
        self.assertGreater(job["expected_saving_percent"], -1)

    def test_bad_jobs(self):
        self.refused(2, "takes", "jobs", "submit", "--", "true")
        self.refused(2, "no length of time", "jobs", "submit", "--takes", "soon", "--", "true")
        self.refused(2, "no deadline", "jobs", "submit", "--takes", "1h", "--by", "25:99 o'clock", "--", "true")
        self.refused(3, "no job 9", "jobs", "cancel", "9")
        self.refused(3, "missing.csv", "jobs", "submit", "--takes", "1h", "--carbon-file", "missing.csv", "--", "true")
        (self.root / "jobs.db").write_bytes(b"x" * 8192)
        self.refused(3, "job queue", "jobs", "list")

    def test_cancel_and_retry(self):
        job = self.submit("--by", "20h", "--takes", "1h", "--carbon-file", self.carbon_file(), "--", "true")
        self.answered("jobs", "cancel", str(job["id"]))
        self.assertEqual(self.state(job["id"])["state"], "cancelled")
        self.refused(2, "over already", "jobs", "cancel", str(job["id"]))
        self.answered("jobs", "retry", str(job["id"]))
        self.answered("jobs", "exec", str(job["id"]))
        self.assertEqual(self.state(job["id"])["state"], "done")


if __name__ == "__main__":
    COMMAND = sys.argv[1]
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
