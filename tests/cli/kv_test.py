#!/usr/bin/env python3
"""Dictionaries and csr caches under faults: full disks, Ctrl-C, bad texts. A tiny model, real processes.

    kv_test.py COMMAND WRITE_TINY_GGUF
"""

import json
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import unittest

COMMAND, WRITE_MODEL = None, None


class KvTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.model = str(self.folder / "tiny.gguf")
        subprocess.run([WRITE_MODEL, self.model], check=True)
        draw = random.Random(1)
        words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(300)]
        self.text = self.file("text.txt", " ".join(draw.choices(words, k=4000)))
        self.dictionary = self.folder / "tiny.dict"

    def file(self, name, contents):
        path = self.folder / name
        path.write_text(contents)
        return str(path)

    def frugal(self, *args, limit_bytes=None):
        """`limit_bytes`: the largest file that the command can write; beyond it the disk is full."""

        def set_limits():
            if limit_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

        return subprocess.run([COMMAND, *args], capture_output=True, timeout=240, preexec_fn=set_limits)

    def train(self, *args, **kwargs):
        return self.frugal("kv", "train", "-m", self.model, "-o", str(self.dictionary), *args, **kwargs)

    def run_csr(self, *args, **kwargs):
        return self.frugal("run", "-m", self.model, "--kv", "csr:2", "--kv-dict", str(self.dictionary), "-p", "abc",
                           "-n", "8", *args, **kwargs)

    def refused(self, message, done):
        errors = [line for line in done.stderr.decode().splitlines() if line.startswith("frugal: error: ")]
        self.assertEqual(len(errors), 1, done.stderr.decode())
        self.assertIn(message, errors[0])
        self.assertNotEqual(done.returncode, 0)

    def files(self):
        return sorted(path.name for path in self.folder.iterdir())

    def test_a_full_disk_leaves_the_old_dictionary(self):
        done = self.train("--text", self.text, "--tokens", "1100")
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        before, files = self.dictionary.read_bytes(), self.files()
        done = self.train("--text", self.text, "--tokens", "2000", limit_bytes=len(before) // 2)
        self.refused(self.dictionary.name, done)
        self.assertEqual(self.dictionary.read_bytes(), before)
        self.assertEqual(self.files(), files)
        done = self.train("--text", self.text, "--tokens", "2000", limit_bytes=64)  # what was measured does not fit
        self.refused("tiny.dict.partial", done)
        self.assertEqual(self.dictionary.read_bytes(), before)
        self.assertEqual(self.files(), files)

    def test_a_full_disk_leaves_the_old_cache(self):
        done = self.train("--text", self.text, "--tokens", "1100")
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        cache = self.folder / "old.kv"
        done = self.run_csr("--save-cache", str(cache))
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        before, files = cache.read_bytes(), self.files()
        done = self.run_csr("--save-cache", str(cache), limit_bytes=len(before) // 2)
        self.refused("old.kv", done)
        self.assertEqual(cache.read_bytes(), before)
        self.assertEqual(self.files(), files)
        self.assertEqual(self.run_csr("--load-cache", str(cache)).returncode, 0)

    def test_an_interrupted_training_goes_on_to_the_same_bytes(self):
        tokens = ["--text", self.text, "--tokens", "4000"]
        self.assertEqual(self.train(*tokens).returncode, 0)
        whole = self.dictionary.read_bytes()
        self.dictionary.unlink()
        partial = self.folder / "tiny.dict.partial"
        self.assertFalse(partial.exists())
        process = subprocess.Popen([COMMAND, "kv", "train", "-m", self.model, "-o", str(self.dictionary), *tokens],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while not partial.exists() and process.poll() is None:
            time.sleep(0.0005)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130, errors.decode())
        self.assertTrue(partial.exists())
        self.assertFalse(self.dictionary.exists())
        self.assertEqual(self.train(*tokens).returncode, 0)
        self.assertEqual(self.dictionary.read_bytes(), whole)
        self.assertFalse(partial.exists())

    def test_needles_go_on_from_their_records(self):
        self.assertEqual(self.train("--text", self.text, "--tokens", "1100").returncode, 0)
        records = self.folder / "needles.jsonl"
        args = ["kv", "needle", "-m", self.model, "--kv-dict", str(self.dictionary), "-f", self.text, "--kv", "f16",
                "--kv", "csr:2", "--length", "400", "--depths", "3", "--prompts", "2", "--json"]

        def ask(*more):
            done = self.frugal(*args, *more)
            self.assertEqual(done.returncode, 0, done.stderr.decode())
            return [(row["name"], row["ours"], row["n"]) for row in json.loads(done.stdout)]

        self.assertEqual([(name, n) for name, _, n in ask()],
                         [("needles found, f16", 6), ("needles found, csr:2", 6), ("needles found, csr:2 less f16", 6)])
        rows = ask("--at-once", "--records", str(records))
        self.assertEqual([n for _, _, n in rows], [6, 6, 6])
        lines = records.read_text().splitlines()
        self.assertEqual(len(lines), 3)  # what of, and two prompts
        found = json.loads(lines[2])
        self.assertEqual(sorted(found), ["csr:2", "f16"])
        # The first prompt's answers are taken from the file, the second's are found anew.
        records.write_text("\n".join([lines[0], '{"csr:2":[1,1,0],"f16":[1,0,0]}']) + "\n")
        rows = {name: ours for name, ours, _ in ask("--at-once", "--records", str(records))}
        self.assertAlmostEqual(rows["needles found, f16"], 100 * (1 + sum(found["f16"])) / 6, places=1)
        self.assertAlmostEqual(rows["needles found, csr:2 less f16"],
                               100 * (1 + sum(found["csr:2"]) - sum(found["f16"])) / 6, places=1)
        self.refused("other options", self.frugal(*args, "--records", str(records)))

    def test_filled_caches_are_taken_up(self):
        fills = self.folder / "fills"
        fills.mkdir()
        args = ["kv", "bench", "-m", self.model, "--kv", "f16", "--peer", "f16", "--tokens", "2", "--repetitions", "1",
                "--fills", str(fills), "--json"]

        def read_in(*more):
            done = self.frugal(*args, *more)
            self.assertEqual(done.returncode, 0, done.stderr.decode())
            return [row["name"] for row in json.loads(done.stdout) if "prefill_tokens_per_s" in row]

        both = ["decode at depth 300, f16", "decode at depth 300, llama.cpp f16"]
        self.assertEqual(read_in("-f", self.text, "--depth", "300"), both)
        self.assertEqual(len(list(fills.iterdir())), 2)
        self.assertEqual(read_in("-f", self.text, "--depth", "300"), [])
        other = self.file("other.txt", "b" + pathlib.Path(self.text).read_text())
        self.refused("is of another text", self.frugal(*args, "-f", other, "--depth", "300"))
        # Another context is another model, and as long as it is stretched.
        self.assertEqual(read_in("-f", self.text, "--depth", "300", "--rope-scale", "2"), both)
        self.assertEqual(len(list(fills.iterdir())), 4)
        self.refused("the RoPE scale is 0", self.frugal(*args, "-f", self.text, "--rope-scale", "0"))

    def test_texts_that_cannot_be_trained_on(self):
        self.refused("too few to train on", self.train("--text", self.file("empty.txt", "")))
        self.refused("too few to train on", self.train("--text", self.file("short.txt", "abc " * 20)))
        self.refused("nowhere.txt", self.train("--text", str(self.folder / "nowhere.txt")))
        binary = self.folder / "binary"
        binary.write_bytes(b"\xff\xfe\x00" * 2000)
        self.refused("not UTF-8", self.train("--text", str(binary)))
        self.assertFalse(self.dictionary.exists())

    def test_a_dictionary_that_does_not_fit_is_refused(self):
        self.refused("tiny.dict", self.run_csr())  # there is none
        self.assertEqual(self.train("--text", self.text, "--tokens", "1100").returncode, 0)
        good = self.dictionary.read_bytes()
        self.dictionary.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        self.refused("tiny.dict", self.run_csr())
        self.dictionary.write_bytes(good[:8] + b"\x63" + good[9:])
        self.refused("has version 99", self.run_csr())
        self.dictionary.write_bytes(good)
        self.assertEqual(self.run_csr().returncode, 0)


if __name__ == "__main__":
    COMMAND, WRITE_MODEL = sys.argv[1:3]
    unittest.main(argv=sys.argv[:1] + sys.argv[3:], verbosity=2)
