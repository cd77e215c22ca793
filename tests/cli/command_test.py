#!/usr/bin/env python3
"""The command as a user meets it: real processes on a real model, good input and bad.

    command_test.py COMMAND MODELS_FOLDER [test names]
"""

import json
import os
import pathlib
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

COMMAND, MODELS = None, None
LONG_TEXT = pathlib.Path("/usr/share/common-licenses/GPL-3")


def model(name="smollm2-135m-instruct-q4_1"):
    return str(pathlib.Path(MODELS) / f"{name}.gguf")


def frugal(*args, stdin=b"", env=None, limit_bytes=None, timeout=240):
    """Runs the command; `limit_bytes` is the largest file that it may write (a full disk, as far as it can tell)."""

    def set_limits():
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    environment = {k: v for k, v in os.environ.items() if k not in ("FRUGAL_MODEL",)}
    environment.update(env or {})
    return subprocess.run([COMMAND, *args], input=stdin, capture_output=True, env=environment, timeout=timeout,
                          preexec_fn=set_limits)


class CommandTest(unittest.TestCase):
    def refused(self, code, message, *args, **kwargs):
        """The command ends with `code` and one line of error that holds `message`."""
        done = frugal(*args, **kwargs)
        errors = done.stderr.decode(errors="replace")
        self.assertEqual(done.returncode, code, errors)
        lines = [line for line in errors.splitlines() if line]
        self.assertTrue(lines and lines[-1].startswith("frugal: error: "), errors)
        self.assertEqual(sum(line.startswith("frugal: error: ") for line in lines), 1, errors)
        self.assertIn(message, lines[-1])
        return done

    def answered(self, *args, **kwargs):
        done = frugal(*args, **kwargs)
        self.assertEqual(done.returncode, 0, done.stderr.decode(errors="replace"))
        return done

    def test_command_line_faults(self):
        self.refused(2, "there is no command `bogus`", "bogus")
        self.refused(2, "--bogus", "run", "--bogus")
        self.refused(2, "subcommand is required")
        self.refused(2, "there is no prompt", "run", "-m", model())
        self.refused(2, "the prompt is empty", "run", "-m", model(), "-f", "-", stdin=b" \n")
        self.refused(2, "not both", "run", "-m", model(), "-p", "a", "-f", "b")
        self.refused(2, "--threads is 10000, but must be from 1 to 256", "run", "-m", model(), "-p", "a", "-t", "10000")
        self.refused(2, "--threads is -1", "run", "-m", model(), "-p", "a", "-t", "-1")
        self.refused(2, "temperature is -1", "run", "-m", model(), "-p", "a", "--temperature=-1")
        self.refused(2, "top_p is 2", "run", "-m", model(), "-p", "a", "--top-p", "2")
        self.refused(2, "f16", "run", "-m", model(), "-p", "a", "--kv", "f12")
        self.refused(2, "stop string", "run", "-m", model(), "-p", "a", "--stop", "")

    def test_a_budget_in_iterations_ends_a_rationale(self):
        question = ["run", "-m", model(), "-p", "How much is 12 + 30? Think step by step.", "--temperature", "0", "--decode",
                    "glance", "--confidence", "2"]
        glance = json.loads(self.answered(*question, "--cot-budget", "5it", "--json").stdout)
        self.assertEqual(glance["decoding"]["forwards"], 5)
        self.assertTrue(glance["glance"]["out_of_budget"])
        self.assertEqual(glance["stop_reason"], "glance")
        for amount in ("0it", "-1", "5x", "it"):
            self.refused(2, f"--cot-budget is '{amount}'", *question, f"--cot-budget={amount}")

    def test_evaluation_of_chains_refuses_what_it_cannot_do(self):
        with tempfile.TemporaryDirectory() as folder:
            empty, data = pathlib.Path(folder) / "empty.jsonl", pathlib.Path(folder) / "data.jsonl"
            empty.write_text("")
            data.write_text('{"task": "gsm8k", "question": "1 + 1?", "answer": "2"}\nnot JSON\n')
            self.refused(3, "holds no question", "cot", "eval", "-m", model(), "--data", str(empty))
            self.refused(2, "there is no command 'not-there'", "cot", "eval", "-m", model(), "--data", str(data),
                         "--speculators", "not-there:ngram-mod@9")
            done = self.answered("cot", "eval", "-m", model(), "--data", str(data), "--skip", "0", "--no-peer", "--no-glance",
                                 "-n", "4", "--shots", "0", "--reps", "1", "--json")
            self.assertIn("data.jsonl:2:", done.stderr.decode())
            rows = {row["name"]: row for row in json.loads(done.stdout)}
            self.assertEqual((rows["exact_differences"]["ours"], rows["exact_differences"]["n"]), (0, 1))

    def test_thread_count_zero_means_all(self):
        done = self.answered("run", "-m", model(), "-p", "Hello", "-n", "2", "-t", "0", "--json")
        self.assertGreaterEqual(json.loads(done.stdout)["threads"], 1)

    def test_bad_files(self):
        self.refused(3, "there is no model '/nonexistent.gguf'", "run", "-m", "/nonexistent.gguf", "-p", "a")
        self.refused(3, "/nonexistent.txt", "run", "-m", model(), "-f", "/nonexistent.txt")
        with tempfile.TemporaryDirectory() as folder:
            text = pathlib.Path(folder) / "latin1.txt"
            text.write_bytes("caf\u00e9".encode("latin-1"))
            self.refused(3, "is not UTF-8", "run", "-m", model(), "-f", str(text))
            whole = pathlib.Path(model()).read_bytes()
            cut = pathlib.Path(folder) / "cut.gguf"
            cut.write_bytes(whole[: len(whole) // 2])
            self.refused(3, "cut.gguf", "run", "-m", str(cut), "-p", "a")
            noise = pathlib.Path(folder) / "noise.gguf"
            noise.write_bytes(b"not a model at all" * 100)
            self.refused(3, "noise.gguf", "run", "-m", str(noise), "-p", "a")
            self.refused(3, "config.json", "run", "-p", "a", "--config", str(pathlib.Path(folder) / "config.json"))
            config = pathlib.Path(folder) / "config.json"
            config.write_text('{"topk": 3}')
            self.refused(2, 'no option "topk"', "run", "-p", "a", "--config", str(config))

    def test_invalid_utf8_on_the_command_line(self):
        self.refused(2, "not valid UTF-8", "run", "-m", model(), "-p", b"caf\xe9")

    def test_prompt_over_the_context(self):
        self.refused(2, "tokens and the context", "run", "-m", model(), "-f", str(LONG_TEXT), "--raw", "-c", "4096")
        self.refused(2, "--cut-document", "run", "-m", model(), "-p", "What is this?", "-d", str(LONG_TEXT), "-c", "4096")
        done = self.answered("run", "-m", model(), "-p", "What is this?", "-d", str(LONG_TEXT), "--cut-document", "-c", "300",
                             "-n", "4", "--json")
        self.assertIn("was cut to its first", done.stderr.decode())
        self.assertLessEqual(json.loads(done.stdout)["prompt_tokens"], 296)

    def test_answer_streams_and_json_holds_the_same(self):
        question = ["run", "-m", model(), "-p", "The capital of Italy is the city of", "--raw", "-n", "12"]
        text = self.answered(*question)
        self.assertIn("Rome", text.stdout.decode())
        for word in ("prefill", "decode", "memory", "FLOP", "energy"):
            self.assertIn(word, text.stderr.decode())
        data = json.loads(self.answered(*question, "--json").stdout)
        self.assertEqual(data["text"] + "\n", text.stdout.decode())
        self.assertIn(data["stop_reason"], ("end_of_generation", "max_tokens"))
        for key in ("prefill_s", "decode_s", "peak_memory_bytes", "cache_bytes", "flops", "bytes_moved"):
            self.assertGreater(data[key], 0, key)
        energy = data["energy_j"]
        self.assertTrue(energy is None or energy["provenance"] in ("measured", "modelled", "assumed"))

    def test_same_answer_at_any_chunk_and_thread_count(self):
        answers = {json.loads(self.answered("run", "-m", model(), "-p", "Tell me about rivers.", "-n", "16", "--json", *more)
                              .stdout)["text"]
                   for more in ([], ["-t", "1"], ["--chunk", "5"], ["-t", "2", "--chunk", "1"])}
        self.assertEqual(len(answers), 1, answers)

    def test_one_processor_gives_the_same_answer(self):
        words = ("run", "-m", model(), "-p", "Tell me about rivers.", "-n", "16", "--json")
        everywhere = json.loads(self.answered(*words).stdout)["text"]
        one = min(os.sched_getaffinity(0))
        done = subprocess.run(["taskset", "-c", str(one), COMMAND, *words], capture_output=True, timeout=240)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout)["text"], everywhere)
        told = subprocess.run(["taskset", "-c", str(one), COMMAND, "doctor", "--json"], capture_output=True, timeout=240)
        self.assertEqual(json.loads(told.stdout)["processors"], 1)

    def test_stop_string_and_seed(self):
        args = ["run", "-m", model(), "-p", "Count: one, two, three,", "--raw", "-n", "20", "--json"]
        whole = json.loads(self.answered(*args).stdout)["text"]
        word = whole.split()[2]
        stopped = json.loads(self.answered(*args, "--stop", word).stdout)
        self.assertEqual(stopped["stop_reason"], "stop_string")
        self.assertEqual(stopped["stop_string"], word)
        self.assertEqual(stopped["text"], whole[: whole.index(word)])
        sampled = [json.loads(self.answered(*args, "--temperature", "1.5", "--seed", seed).stdout)["text"] for seed in ("1", "1", "2")]
        self.assertEqual(sampled[0], sampled[1])
        self.assertNotEqual(sampled[0], sampled[2])

    def test_config_file_and_dump(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "options.json"
            dump = self.answered("run", "-p", "Hello", "-n", "3", "--dump-config").stdout
            self.assertEqual(json.loads(dump)["max_tokens"], 3)
            path.write_bytes(dump)
            data = json.loads(self.answered("run", "-m", model(), "--config", str(path), "--json").stdout)
            self.assertEqual(data["answer_tokens"], 3)

    def test_cache_is_saved_and_loaded(self):
        with tempfile.TemporaryDirectory() as folder:
            cache = str(pathlib.Path(folder) / "cache.bin")
            args = ["run", "-m", model(), "-p", "Say a few words about the sea.", "-n", "8", "--json"]
            first = json.loads(self.answered(*args, "--save-cache", cache).stdout)
            again = json.loads(self.answered(*args, "--load-cache", cache).stdout)
            self.assertEqual(first["text"], again["text"])
            self.assertEqual(again["reused_tokens"], again["prompt_tokens"] - 1)
            damaged = bytearray(pathlib.Path(cache).read_bytes())
            damaged[len(damaged) // 2] ^= 1
            pathlib.Path(cache).write_bytes(damaged)
            self.refused(3, "cache.bin", *args, "--load-cache", cache)
            self.refused(3, "missing.bin", *args, "--load-cache", str(pathlib.Path(folder) / "missing.bin"))
            self.refused(3, "no/such", *args, "--save-cache", str(pathlib.Path(folder) / "no/such/cache.bin"))

    def test_pool_of_outputs(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "pool.json"
            args = ["run", "-m", model(), "-p", "Say a few words about the sea.", "-n", "24", "--json"]
            plain = json.loads(self.answered(*args).stdout)
            first = json.loads(self.answered(*args, "--pool", str(path)).stdout)
            again = json.loads(self.answered(*args, "--pool", str(path)).stdout)
            self.assertEqual({plain["text"]}, {first["text"], again["text"]})
            self.assertLess(again["decoding"]["forwards"], first["decoding"]["forwards"])
            self.assertEqual(len(json.loads(path.read_text())["outputs"]), 2)
            path.write_text(path.read_text().replace('"outputs":[[', '"outputs":[[99999999,'))
            self.refused(3, "not a list of this model's tokens", *args, "--pool", str(path))
            path.write_text('{"model":"0000000000000000","outputs":[]}')
            self.refused(2, "another model", *args, "--pool", str(path))
            path.write_text("[")
            self.refused(3, "no pool of outputs", *args, "--pool", str(path))

    def test_full_disk_leaves_nothing_behind(self):
        with tempfile.TemporaryDirectory() as folder:
            cache = pathlib.Path(folder) / "cache.bin"
            self.refused(4, "cache.bin", "run", "-m", model(), "-p", "Hello", "-n", "4", "--save-cache", str(cache),
                         limit_bytes=10000)
            self.assertEqual(os.listdir(folder), [])

    def test_closed_stdout_is_an_error_not_a_signal(self):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([COMMAND, "run", "-m", model(), "-p", "Hello", "-n", "4"], stdout=full, stderr=subprocess.PIPE,
                                  timeout=240)
        self.assertEqual(done.returncode, 4, done.stderr)
        self.assertIn(b"frugal: error: ", done.stderr)

    def test_interrupt_in_prefill(self):
        with tempfile.TemporaryDirectory() as folder:
            text = pathlib.Path(folder) / "long.txt"
            text.write_text("word " * 60000)
            process = subprocess.Popen([COMMAND, "run", "-m", model(), "-f", str(text), "--raw", "-c", "80000", "--chunk", "64",
                                        "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            time.sleep(3)  # by then it reads the prompt, or it still loads: both must end the same way
            self.assertIsNone(process.poll(), "the prompt was over before the interrupt")
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=120)
            self.assertEqual(process.returncode, 130, errors)
            if out:
                data = json.loads(out)
                self.assertEqual(data["stop_reason"], "cancelled")
                self.assertEqual(data["answer_tokens"], 0)

    def test_eval_reports_perplexity_and_reference(self):
        data = json.loads(self.answered("eval", "ppl", "-m", model(), "-f", str(LONG_TEXT), "--positions", "64", "--window", "128",
                                        "--reference", "llama.cpp", "--json").stdout)
        self.assertEqual(data["positions"], 64)
        self.assertTrue(1 < data["perplexity"] < 100, data)
        # Far looser than the bars of docs/benchmarks.md: 64 positions tell an engine that works from one that does not.
        self.assertLess(data["reference"]["kl_mean"], 0.02)
        self.assertGreater(data["reference"]["top1_agreement"], 0.9)
        with tempfile.TemporaryDirectory() as folder:
            saved = str(pathlib.Path(folder) / "run.logits")
            args = ["eval", "ppl", "-m", model(), "-f", str(LONG_TEXT), "--positions", "32", "--window", "64"]
            self.answered(*args, "--save-logits", saved)
            against = json.loads(self.answered(*args, "--against", saved, "--json").stdout)["reference"]
            self.assertEqual(against["top1_agreement"], 1)
            self.assertLess(against["kl_mean"], 1e-6)  # what 16 bits a log-probability cost
            self.refused(2, "was saved for another text", *args, "--against", saved, "--positions", "16")
            self.refused(3, "not a file of saved logits", *args, "--against", str(LONG_TEXT))
        self.refused(2, "less than one window", "eval", "ppl", "-m", model(), "-f", __file__, "--window", "100000")

    def test_doctor_as_json(self):
        data = json.loads(self.answered("doctor", "--json").stdout)
        self.assertGreaterEqual(data["processors"], 1)
        self.assertTrue(data["isa"])
        self.assertIn("fallbacks", data)

    def test_doctor_on_a_processor_without_avx2(self):
        emulator = shutil.which("qemu-x86_64")
        if platform.machine() != "x86_64" or emulator is None:
            self.skipTest("no emulator of such a processor")
        answer = subprocess.run([emulator, "-cpu", "Nehalem", COMMAND, "doctor", "--json"], capture_output=True,
                                text=True, timeout=300)
        self.assertEqual(answer.returncode, 0, answer.stderr)
        data = json.loads(answer.stdout)
        self.assertEqual(data["isa"], "generic")
        self.assertIn({"what": "kernels in plain C++, many times slower",
                       "reason": "this processor has no AVX2, FMA and F16C"}, data["fallbacks"])


if __name__ == "__main__":
    COMMAND, MODELS = os.path.abspath(sys.argv[1]), sys.argv[2]
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
