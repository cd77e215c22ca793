#!/usr/bin/env python3
"""meter, report and jobs as a user meets them: real processes, good input and bad.

    meter_test.py COMMAND [test names]
"""

import contextlib
import datetime
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import time
import urllib.request

from meter_harness import BUSY, COMMAND, Harness, main


class MeterTest(Harness):
    # meter run

    def test_run_passes_exit_codes_and_output_through(self):
        done = self.frugal("meter", "run", "--", "sh", "-c", "echo out; exit 5")
        self.assertEqual((done.returncode, done.stdout), (5, b"out\n"))
        self.assertEqual(self.frugal("meter", "run", "--", "/no/such/command").returncode, 127)
        self.assertEqual(self.frugal("meter", "run", "--", "/").returncode, 126)
        self.assertEqual(self.frugal("meter", "run", "--", "sh", "-c", "kill -9 $$").returncode, 137)

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
        runs = [subprocess.Popen([*COMMAND, "meter", "run", "--json", "--", "sh", "-c", BUSY], stderr=subprocess.PIPE,
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
        server = subprocess.Popen([*COMMAND, "meter", "serve", "--port", "0"], stderr=subprocess.PIPE, env=self.env)
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
        runner = subprocess.Popen([*COMMAND, "jobs", "run", "--poll", "0.1"], env=self.env, stderr=subprocess.DEVNULL)
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

    def test_a_killed_runner_loses_nothing(self):
        job = self.submit("--by", "1s", "--takes", "1s", "--", "sh", "-c", "echo begun >> begun; sleep 1; echo ended >> ended")
        runner = subprocess.Popen([*COMMAND, "jobs", "run", "--poll", "0.1"], env=self.env, stderr=subprocess.DEVNULL)
        self.wait_for(job["id"], "running")
        runner.kill()
        runner.wait()
        later = subprocess.run([*COMMAND, "jobs", "run", "--until-empty", "--poll", "0.1"], env=self.env, capture_output=True,
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

    # several hosts

    def nats_server(self):
        ports = self.root / "ports"
        ports.mkdir()
        server = subprocess.Popen(["nats-server", "-a", "127.0.0.1", "-p", "-1", "-js", "-sd", str(self.root / "nats"),
                                   "--ports_file_dir", str(ports), "-l", "/dev/null"])
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        for _ in range(3000):  # a limit for hangs only
            for file in ports.iterdir():
                with contextlib.suppress(ValueError, KeyError, IndexError):
                    return json.loads(file.read_text())["nats"][0]
            time.sleep(0.01)
        self.fail("no nats-server")

    def host(self, name, url):
        runner = subprocess.Popen([*COMMAND, "jobs", "run", "--poll", "0.1", "--queue", str(self.root / f"{name}.db"), "--nats", url,
                                   "--host-name", name, "--lease", "2", "--threads", "4"], env=self.env, stderr=subprocess.DEVNULL)
        self.addCleanup(runner.wait)
        self.addCleanup(runner.kill)
        return runner

    def wait_in_pool(self, url, done):
        jobs = None
        for _ in range(1200):  # a limit for hangs only
            listed = self.frugal("jobs", "list", "--all", "--nats", url, "--json")
            if listed.returncode != 0:  # a server that stands still for seconds on a loaded machine is asked again
                time.sleep(0.1)
                continue
            jobs = {j["id"]: j for j in json.loads(listed.stdout)}
            if done(jobs):
                return jobs
            time.sleep(0.1)
        self.fail(jobs)

    def test_two_hosts_share_jobs_and_a_dead_ones_are_taken_over(self):
        url = self.nats_server()
        ids = [self.submit("--nats", url, "--by", "2s", "--takes", "1s", "--", "sh", "-c", f"echo {i} >> ran")["id"] for i in range(6)]
        submitted = self.submit("--nats", url, "--by", "2s", "--takes", "1s", "--", "sh", "-c", "echo no >> ran")
        self.assertIn("the host that takes it", submitted["note"])
        cancelled = submitted["id"]
        self.answered("jobs", "cancel", "--nats", url, cancelled)
        listed = self.submit("--nats", url, "--by", "2s", "--takes", "1s", "--carbon-file", self.carbon_file(hours_after=1), "--", "true")["id"]
        first = self.host("a", url)
        jobs = self.wait_in_pool(url, lambda jobs: all(jobs[i]["state"] == "done" for i in ids))
        self.assertEqual(sorted((self.root / "ran").read_text().split()), [str(i) for i in range(6)])
        self.assertEqual(jobs[cancelled]["state"], "cancelled")
        self.assertTrue(all(jobs[i]["energy_j"] is not None for i in ids))
        # What waiting saved, as on a single host: from the runs that the host told.
        jobs = self.wait_in_pool(url, lambda jobs: jobs[listed]["state"] == "done")
        self.assertEqual(len(jobs[listed]["runs"]), 1)
        self.assertIsNotNone(jobs[listed]["saved_percent"])
        self.assertIn("saved ", self.answered("jobs", "list", "--nats", url))
        # What was cancelled is begun anew, once, under an id of its own.
        self.assertIn("waits again", self.answered("jobs", "retry", "--nats", url, cancelled))
        self.refused(2, "retried already", "jobs", "retry", "--nats", url, cancelled)
        self.wait_in_pool(url, lambda jobs: jobs[cancelled + "-r"]["state"] == "done")
        self.assertEqual((self.root / "ran").read_text().split().count("no"), 1)
        # A host dies with a job that may be begun again: the other one runs it.
        job = self.submit("--nats", url, "--by", "2s", "--takes", "1s", "--restart", "--", "sh", "-c",
                          "echo $PPID >> keepers; sleep $((3 - 2 * ($(wc -l < keepers) > 1))); echo end >> ended")["id"]
        self.wait_in_pool(url, lambda jobs: jobs[job]["state"] == "running")
        while not (self.root / "keepers").exists() or not (self.root / "keepers").read_text().strip():
            time.sleep(0.05)
        first.kill()
        os.kill(int((self.root / "keepers").read_text().split()[0]), signal.SIGKILL)
        self.host("b", url)
        jobs = self.wait_in_pool(url, lambda jobs: jobs[job]["state"] == "done")
        self.assertEqual(jobs[job]["host"], "b")
        self.assertEqual((self.root / "ended").read_text(), "end\n")
        self.refused(1, "no NATS server", "jobs", "list", "--nats", "nats://127.0.0.1:1")

    # carbon over HTTP

    def test_carbon_by_address_grows_into_a_history_and_stands_without_a_network(self):
        now = datetime.datetime.now(datetime.timezone.utc).replace(minute=0, second=0, microsecond=0)
        history = [{"zone": "ES", "carbonIntensity": 100 + h, "datetime": f"{now - datetime.timedelta(hours=23 - h):%Y-%m-%dT%H:%M:%SZ}"}
                   for h in range(24)]
        answers = {"/history?zone=ES": json.dumps({"zone": "ES", "history": history})}
        base, seen, server = self.serve(answers)
        url = base + "/history?zone=ES"
        self.env["FRUGAL_CARBON_TOKEN"] = "key"
        got = self.metered("--carbon-file", url, "--", "true")
        self.assertAlmostEqual(got["g_per_kwh"]["value"], 123)
        self.assertEqual(got["region"], "ES")
        self.assertEqual(seen, ["key"])
        self.metered("--carbon-file", url, "--", "true")
        self.assertEqual(len(seen), 1)  # fresh enough
        kept = next((self.root / "state/frugal/carbon").iterdir())
        # The next answer begins later: what was known stays.
        answers["/history?zone=ES"] = json.dumps({"zone": "ES", "history": history[12:]})
        old = time.time() - 3600
        os.utime(kept, (old, old))
        self.metered("--carbon-file", url, "--", "true")
        self.assertEqual(len(kept.read_text().splitlines()), 25)
        # No network.
        os.utime(kept, (old, old))
        server.shutdown()
        server.server_close()
        done = self.frugal("meter", "run", "--carbon-file", url, "--", "true")
        self.assertEqual(done.returncode, 0)
        self.assertIn("is used", done.stderr.decode())
        self.refused(3, "carbon data", "meter", "run", "--carbon-file", base + "/other", "--", "true")

    def test_metrics_are_pushed_to_a_collector(self):
        base, seen, _ = self.serve({})
        self.frugal("meter", "run", "-q", "--", "true")
        self.answered("report", "--push", base + "/v1/metrics")
        self.assertIn("resourceMetrics", json.loads(seen[0]))
        self.refused(2, "no http", "report", "--push", "collector")

    def test_bad_answers_are_refused(self):
        base, _, _ = self.serve({"/html": "<html>", "/wet": '{"zone": "ES", "carbonIntensity": "wet", "datetime": "2026-01-01T00:00:00Z"}'})
        for path in ("/html", "/wet", "/none"):
            done = self.frugal("meter", "run", "--carbon-file", base + path, "--", "true")
            self.assertNotEqual(done.returncode, 0, path)
            self.assertIn("carbon data", done.stderr.decode())

    # one sampler

    def test_meters_share_a_sampler(self):
        self.env["XDG_RUNTIME_DIR"] = str(self.root)
        self.assertTrue(self.json("meter", "doctor")["shared_sampler"])
        self.assertFalse(self.json("meter", "doctor", "--own-sampler")["shared_sampler"])
        self.assertEqual(len(list((self.root / "frugal").iterdir())), 1)

    def test_cancel_and_retry(self):
        job = self.submit("--by", "20h", "--takes", "1h", "--carbon-file", self.carbon_file(), "--", "true")
        self.answered("jobs", "cancel", str(job["id"]))
        self.assertEqual(self.state(job["id"])["state"], "cancelled")
        self.refused(2, "over already", "jobs", "cancel", str(job["id"]))
        self.answered("jobs", "retry", str(job["id"]))
        self.answered("jobs", "exec", str(job["id"]))
        self.assertEqual(self.state(job["id"])["state"], "done")


if __name__ == "__main__":
    main()
