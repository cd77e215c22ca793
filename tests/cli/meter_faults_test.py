#!/usr/bin/env python3
"""What goes wrong around the meter and the jobs, one fault a test: a clear word, the exit code of the work kept, nothing lost.

    meter_faults_test.py COMMAND [test names]
"""

import json
import os
import pathlib
import resource
import signal
import subprocess
import time

from meter_harness import COMMAND, Harness, main


class FaultsTest(Harness):
    def rows(self):
        return self.answered("report", "--format", "csv").strip().split("\r\n")[1:]

    def test_no_counters(self):
        got = self.metered("--no-counters", "--", "sh", "-c", "exit 0")
        self.assertIn(got["source"], ("load-model", "threads"))
        self.assertNotEqual(got["cpu_j"]["provenance"], "measured")
        self.assertLess(got["cpu_j"]["low"], got["cpu_j"]["high"])
        notes = self.json("meter", "doctor", "--no-counters")["notes"]
        self.assertTrue(any("switched off" in note for note in notes), notes)

    def test_no_permission_for_the_ledger(self):
        # A folder cannot be made below a file: refused to root, too.
        (self.root / "file").write_text("")
        self.env["FRUGAL_LEDGER"] = str(self.root / "file" / "ledger.db")
        done = self.frugal("meter", "run", "--", "sh", "-c", "echo out; exit 5")
        self.assertEqual((done.returncode, done.stdout), (5, b"out\n"))
        self.assertIn("warning", done.stderr.decode())
        self.assertIn("energy", done.stderr.decode())
        self.refused(4, "ledger", "report")

    def test_no_place_for_the_sampler(self):
        self.env["XDG_RUNTIME_DIR"] = str(self.root / "run")
        (self.root / "run").mkdir()
        (self.root / "run" / "frugal").write_text("no folder")
        got = self.json("meter", "doctor")
        self.assertFalse(got["shared_sampler"])
        self.assertTrue(any("on its own" in note for note in got["notes"]), got["notes"])
        self.assertEqual(self.frugal("meter", "run", "--", "sh", "-c", "exit 4").returncode, 4)

    def test_no_network(self):
        # Nobody listens at port 1. Without a history there is nothing to go by, and the command is not begun.
        self.refused(3, "carbon data", "meter", "run", "--carbon-file", "http://127.0.0.1:1/x", "--", "touch", "begun")
        self.assertFalse((self.root / "begun").exists())
        self.refused(1, "nobody answers", "jobs", "submit", "--takes", "1h", "--carbon-file", "http://127.0.0.1:1/x", "--", "true")
        self.frugal("meter", "run", "-q", "--", "true")
        self.refused(1, "127.0.0.1:1", "report", "--push", "http://127.0.0.1:1/v1/metrics")
        self.assertEqual(len(self.rows()), 1)
        self.refused(1, "no NATS server", "jobs", "submit", "--takes", "1s", "--nats", "nats://127.0.0.1:1", "--", "true")

    def test_an_unknown_processor(self):
        # No table of processors, as where the set-up had no network.
        self.env["FRUGAL_CACHE"] = str(self.root / "empty")
        got = self.json("meter", "doctor")
        self.assertGreater(got["model_full_w"], 0)
        if got["source"] == "threads":
            self.assertIn("per thread", got["description"])
            self.assertTrue(any("--tdp" in note or "--host-threads" in note for note in got["notes"]), got["notes"])
        self.refused(3, "not installed", "meter", "doctor", "--region", "ESP")
        self.assertIn("5 W", self.json("meter", "doctor", "--no-counters", "--tdp", "5", "--host-threads", "2")["description"])

    def test_clock_steps(self):
        # Entries from the past and from the future are told by their time, and sums do not suffer.
        self.frugal("meter", "run", "-q", "--", "true")
        import sqlite3
        with sqlite3.connect(self.env["FRUGAL_LEDGER"]) as ledger:
            ledger.execute("UPDATE entries SET unix_s = unix_s + 864000")
        self.frugal("meter", "run", "-q", "--", "true")
        groups = json.loads(self.answered("report", "--by", "kind", "--format", "json"))
        self.assertEqual(groups[0]["entries"], 2)
        self.answered("report", "--html", str(self.root / "page.html"))
        self.assertNotRegex((self.root / "page.html").read_text(), r"\b(nan|inf)\b")

    def carbon(self, *lines, name="bad.csv"):
        path = self.root / name
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    def test_malformed_carbon_data(self):
        head = "Datetime (UTC),Carbon Intensity gCO2eq/kWh (LCA)"
        now = time.strftime("%Y-%m-%d %H:00:00", time.gmtime())
        for text, word in ((f"{now},wet", "line 2"), (f"{now},-5", "line 2"), (f"{now},nan", "line 2"), (f"{now},1e99", "line 2"),
                           ("yesterday,100", "line 2"), ("2026-13-01 00:00:00,100", "line 2")):
            path = self.carbon(head, text)
            self.refused(3, word, "meter", "run", "--carbon-file", path, "--", "touch", "begun")
            self.refused(3, word, "jobs", "submit", "--takes", "1h", "--carbon-file", path, "--", "true")
        for text in ("", "\0\0\0\0", "{", "[]", "{}", '{"history": 5}', '{"data": [{"intensity": 3}]}', '{"Emissions": [7]}'):
            self.refused(3, "bad.json", "meter", "run", "--carbon-file", self.carbon(text, name="bad.json"), "--", "touch", "begun")
        self.assertFalse((self.root / "begun").exists())
        self.assertEqual(json.loads(self.answered("jobs", "list", "--json")), [])

    def test_carbon_data_that_break_while_a_job_waits(self):
        path = pathlib.Path(self.carbon_file())
        job = self.submit("--by", "2s", "--takes", "1s", "--carbon-file", str(path), "--", "sh", "-c", "echo ran")
        path.write_text("nonsense")
        done = self.frugal("jobs", "run", "--until-empty", "--poll", "0.1")
        self.assertEqual(done.returncode, 0, done.stderr)
        got = self.state(job["id"])
        self.assertEqual((got["state"], got["exit_code"]), ("done", 0))
        self.assertIsNone(got["saved_percent"])

    def test_stale_carbon_data(self):
        stale = pathlib.Path(self.carbon_file(hours_before=100))
        stale.write_text("\n".join(stale.read_text().splitlines()[:30]) + "\n")
        self.refused(3, "does not cover the present", "meter", "run", "--carbon-file", str(stale), "--", "true")
        # Work that waits goes by a forecast from there, and says how old it is.
        job = self.submit("--by", "20h", "--takes", "1h", "--carbon-file", str(stale), "--", "true")
        self.assertIn("hours ago", job["note"])

    def test_a_command_that_does_not_exist(self):
        for words, code in ((["/no/such/command"], 127), (["no-such-command"], 127), (["/"], 126)):
            done = self.frugal("meter", "run", "--", *words)
            self.assertEqual(done.returncode, code)
            self.assertIn(words[0], done.stderr.decode())
        job = self.submit("--by", "1s", "--takes", "1s", "--", "/no/such/command")
        self.assertEqual(self.frugal("jobs", "exec", str(job["id"])).returncode, 127)
        got = self.state(job["id"])
        self.assertEqual((got["state"], got["exit_code"]), ("failed", 127))
        self.assertIn("/no/such/command", got["error"])
        self.assertEqual(len([row for row in self.rows() if "command" in row and ",126" in row]), 0)

    def test_a_job_that_forks_and_dies(self):
        # Its first process is gone at once; what it left runs on, in a session of its own, and is the job.
        script = "setsid sh -c 'sleep 1; echo last' & exit 3"
        job = self.submit("--by", "1s", "--takes", "1s", "--", "sh", "-c", script)
        self.assertEqual(self.frugal("jobs", "exec", str(job["id"])).returncode, 3)
        self.assertEqual(self.state(job["id"])["state"], "failed")
        self.assertEqual(pathlib.Path(job["log"]).read_text(), "last\n")
        # Cancelled while it is like that: all of it goes.
        job = self.submit("--by", "1s", "--takes", "1s", "--", "sh", "-c", "setsid sh -c 'echo $$; exec sleep 600' & exit 3")
        keeper = subprocess.Popen([*COMMAND, "jobs", "exec", str(job["id"])], env=self.env, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
        log = pathlib.Path(job["log"])
        while not log.exists() or not log.read_text().endswith("\n"):
            time.sleep(0.05)
        self.answered("jobs", "cancel", str(job["id"]))
        keeper.wait(600)
        self.assertEqual(self.state(job["id"])["state"], "cancelled")
        with self.assertRaises(ProcessLookupError):
            os.kill(int(log.read_text()), 0)

    def on_a_full_disk(self, *args):
        """No file can grow: what a full disk does to writes, for this process and its children."""
        return subprocess.run([*COMMAND, *args], capture_output=True, env=self.env, timeout=900, cwd=self.root,
                              restore_signals=False,  # Python ignores SIGXFSZ, and so writes fail instead
                              preexec_fn=lambda: (signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
                                                  resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))))

    def test_a_full_disk(self):
        self.frugal("meter", "run", "-q", "--", "true")
        job = self.submit("--by", "20h", "--takes", "1h", "--", "true")
        done = self.on_a_full_disk("meter", "run", "--own-sampler", "--", "sh", "-c", "exit 6")
        self.assertEqual(done.returncode, 6, done.stderr)
        self.assertIn("warning", done.stderr.decode())
        self.assertIn("energy", done.stderr.decode())
        done = self.on_a_full_disk("jobs", "submit", "--takes", "1h", "--", "true")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("job queue", done.stderr.decode())
        done = self.on_a_full_disk("report", "--html", "page.html")
        self.assertNotEqual(done.returncode, 0)
        self.assertFalse((self.root / "page.html").exists())
        # There is room again.
        self.assertEqual(len(self.rows()), 1)
        self.assertEqual([j["id"] for j in self.json("jobs", "list")], [job["id"]])
        self.frugal("meter", "run", "-q", "--", "true")
        self.assertEqual(len(self.rows()), 2)
        # Standard output that takes nothing.
        with open("/dev/full", "w", encoding="utf-8") as full:
            for args in (("report", "--format", "csv"), ("jobs", "list"), ("meter", "doctor")):
                done = subprocess.run([*COMMAND, *args], stdout=full, stderr=subprocess.PIPE, env=self.env, timeout=900)
                self.assertNotEqual(done.returncode, 0, args)

    def test_damaged_files(self):
        self.frugal("meter", "run", "-q", "--", "true")
        path = pathlib.Path(self.env["FRUGAL_LEDGER"])
        path.write_bytes(b"SQLite format 3\0" + b"x" * 9000)
        for suffix in ("-wal", "-shm"):
            pathlib.Path(str(path) + suffix).unlink(missing_ok=True)
        self.refused(3, "move the file away", "report")
        done = self.frugal("meter", "run", "--", "sh", "-c", "exit 2")
        self.assertEqual(done.returncode, 2)
        self.assertIn("move the file away", done.stderr.decode())


if __name__ == "__main__":
    main()
