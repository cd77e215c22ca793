#!/usr/bin/env python3
"""Every plane writes what it cost to the ledger: run, dnn run, cascade serve and replay, meter run, jobs.

    ledger_rows_test.py COMMAND MODELS_FOLDER [test names]
"""

import csv
import io
import json
import re
import signal
import struct
import subprocess
import sys
import urllib.request

from meter_harness import COMMAND, Harness, main

MODEL = []


def field(number, value):
    """A field of a protocol buffer: a varint, or bytes with their length."""
    def varint(n):
        out = b""
        while n > 127:
            out += bytes([n & 127 | 128])
            n >>= 7
        return out + bytes([n])
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def many(number, values):
    return b"".join(field(number, value) for value in values)


FLOAT, INT64 = 1, 7


def onnx_node(kind, inputs, output, **attributes):
    told = [field(1, name) + field(20, 2) + field(3, value) for name, value in attributes.items()]  # 20: the type, 2: an integer
    return many(1, inputs) + field(2, output) + field(4, kind) + many(5, told)


def onnx_constant(name, shape, values):
    return b"".join(field(1, d) for d in shape) + field(2, FLOAT) + field(8, name) + field(9, struct.pack(f"<{len(values)}f", *values))


def onnx_value(name, kind, shape):
    dims = [field(2, d) if isinstance(d, str) else field(1, d) for d in shape]
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, many(1, dims))))


def onnx_model(nodes, constants, inputs, outputs):
    graph = many(1, nodes) + field(2, "g") + many(5, constants) + many(11, inputs) + many(12, outputs)
    return field(1, 8) + field(8, field(1, "") + field(2, 17)) + field(7, graph)


def npy(shape, values, kind="f"):
    head = f"{{'descr': '<{'f4' if kind == 'f' else 'i4'}', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
    head += " " * (-(len(head) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + struct.pack(f"<{len(values)}{kind}", *values)


ITEMS, HISTORY, REQUESTS = 12, 3, 60


class LedgerRowsTest(Harness):
    def rows(self, kind):
        return list(csv.DictReader(io.StringIO(self.answered("report", "--kind", kind, "--format", "csv"))))

    def check(self, row, **wanted):
        for key, value in wanted.items():
            self.assertEqual(row[key], value, row)
        low, value, high = (float(row[key]) for key in ("energy_low_j", "energy_j", "energy_high_j"))
        self.assertTrue(0 <= low <= value <= high and high > 0, row)
        self.assertIn(row["energy_provenance"], ("measured", "modelled", "assumed"))
        self.assertGreater(float(row["cpu_s"]), 0)

    def test_run(self):
        done = self.frugal("run", "-m", f"{MODEL[0]}/smollm2-135m-instruct-q4_1.gguf", "-p", "Hello", "-n", "4", "--ignore-end", "--temperature", "0", "--intensity", "100",
                           "--project", "p", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = self.rows("run")
        self.assertEqual(len(rows), 1)
        self.check(rows[0], unit="token", units="4", project="p", exit_code="0")
        self.assertGreater(float(rows[0]["flops"]), 1e6)
        self.assertAlmostEqual(float(rows[0]["carbon_g"]), float(rows[0]["energy_j"]) * 100 / 3.6e6, delta=1e-9)
        # Joules and gCO2e per token follow.
        group = self.json_report("--by", "model")[0]
        self.assertAlmostEqual(group["sci_g_per_unit"]["value"], float(rows[0]["carbon_g"]) / 4, delta=1e-9)
        self.assertEqual(group["unit"], "token")

    def json_report(self, *args):
        return json.loads(self.answered("report", *args, "--format", "json"))

    def test_dnn_run(self):
        weights = [0.1 * (i % 7) for i in range(32)]
        model = onnx_model([onnx_node("MatMul", ["x", "w"], "h"), onnx_node("Relu", ["h"], "y")],
                           [onnx_constant("w", (8, 4), weights)], [onnx_value("x", FLOAT, (2, 8))], [onnx_value("y", FLOAT, (2, 4))])
        (self.root / "net.onnx").write_bytes(model)
        self.answered("dnn", "run", str(self.root / "net.onnx"), "--frames", "5", "--project", "q")
        rows = self.rows("dnn")
        self.assertEqual(len(rows), 1)
        self.check(rows[0], unit="frame", units="6", project="q", name="dnn run")  # the first frame, which compiles, counts too
        self.assertGreaterEqual(float(rows[0]["flops"]), 6 * 2 * 2 * 8 * 4)
        self.answered("dnn", "run", str(self.root / "net.onnx"), "--no-ledger")
        self.assertEqual(len(self.rows("dnn")), 1)

    def cascade(self):
        folder = self.root / "cascade"
        folder.mkdir()
        spread = [((i * 7919) % 101) / 101 for i in range(HISTORY * (ITEMS + 1))]
        recall = onnx_model([onnx_node("Cast", ["history"], "h", to=FLOAT), onnx_node("MatMul", ["h", "w"], "scores")],
                            [onnx_constant("w", (HISTORY, ITEMS + 1), spread)], [onnx_value("history", INT64, ("B", HISTORY))],
                            [onnx_value("scores", FLOAT, ("B", ITEMS + 1))])
        rank = onnx_model([onnx_node("Cast", ["history"], "h", to=FLOAT), onnx_node("MatMul", ["h", "v"], "m"),
                           onnx_node("Cast", ["items"], "i", to=FLOAT), onnx_node("Sub", ["i", "m"], "d"),
                           onnx_node("Abs", ["d"], "scores")],
                          [onnx_constant("v", (HISTORY, 1), [1 / HISTORY] * HISTORY)],
                          [onnx_value("history", INT64, ("B", HISTORY)), onnx_value("items", INT64, ("B", "N"))],
                          [onnx_value("scores", FLOAT, ("B", "N"))])
        (folder / "recall.onnx").write_bytes(recall)
        (folder / "rank.onnx").write_bytes(rank)
        spec = {"format": "frugal-cascade", "version": 1, "source": "test", "shown": 2, "history_length": HISTORY, "n_items": ITEMS,
                "features": ["a", "b"],
                "stages": [{"name": "recall", "counts": [4, 8],
                            "models": [{"name": "recall", "file": "recall.onnx", "flops_fixed": 100, "flops_item": 0}]},
                           {"name": "rank", "counts": [2],
                            "models": [{"name": "rank", "file": "rank.onnx", "flops_fixed": 10, "flops_item": 20}]}],
                "chains": [{"actions": [0, 0, 0, 0]}, {"actions": [0, 1, 0, 0]}]}
        (folder / "cascade.json").write_text(json.dumps(spec))
        for split in ("fit", "test"):
            kind = [i % 2 for i in range(REQUESTS)]
            files = {"features": ((REQUESTS, 2), [x for k in kind for x in (k, 1 - k)], "f"),
                     "rewards": ((REQUESTS, 2), [x for k in kind for x in (1, 1 + k)], "f"),
                     "history": ((REQUESTS, HISTORY), [1 + (i * 5 + j) % ITEMS for i in range(REQUESTS) for j in range(HISTORY)], "i"),
                     "seen": ((REQUESTS, 1), [1 + i % ITEMS for i in range(REQUESTS)], "i"),
                     "clicked": ((REQUESTS, 2), [1 + (i * 3 + j) % ITEMS for i in range(REQUESTS) for j in range(2)], "i")}
            for name, (shape, values, form) in files.items():
                (folder / f"{name}_{split}.npy").write_bytes(npy(shape, values, form))
        return str(folder)

    def test_cascade_replay(self):
        self.answered("cascade", "replay", self.cascade(), "--rounds", "2", "--project", "r", "--json")
        rows = self.rows("cascade")
        self.assertEqual([row["name"] for row in rows], ["cascade replay, static", "cascade replay, static, 1 % less",
                                                         "cascade replay, price on FLOPs", "cascade replay, price on time"])
        for row in rows:
            self.check(row, unit="request", units=str(2 * REQUESTS), project="r")
            self.assertGreaterEqual(float(row["flops"]), 2 * REQUESTS * 190)  # of the cheaper chain

    def test_cascade_serve(self):
        folder, reward = self.cascade(), str(self.root / "reward.frm")
        self.answered("cascade", "train", folder, "--out", reward, "--epochs", "1")
        server = subprocess.Popen([*COMMAND, "cascade", "serve", folder, "--model", reward, "--port", "0", "--project", "s"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=self.env)
        try:
            url = None
            for line in server.stderr:
                found = re.search(r"http://\S+/v1/decide", line.decode())
                if found:
                    url = found[0]
                    break
            flops = 0
            for body in ({"features": [0, 1]}, {"requests": [[1, 0], [0, 1]]}):
                ask = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
                with urllib.request.urlopen(ask, timeout=60) as answer:
                    got = json.loads(answer.read())
                flops += sum(one["flops"] for one in got.get("decisions", [got]))
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)
            server.stderr.close()
        rows = self.rows("cascade")
        self.assertEqual(sum(float(row["units"]) for row in rows), 3)  # one row at the end, or more of a slow machine's minutes
        self.assertAlmostEqual(sum(float(row["flops"]) for row in rows), flops)
        self.check(rows[-1], unit="request", project="s")

    def test_meter_run_and_jobs(self):
        self.frugal("meter", "run", "-q", "--units", "7", "--unit", "page", "--", "sh", "-c", "exit 3")
        self.check(self.rows("command")[0], unit="page", units="7", exit_code="3", name="sh -c exit 3")
        job = self.submit("--by", "1s", "--takes", "1s", "--project", "t", "--", "sh", "-c", "echo hi")
        self.answered("jobs", "exec", str(job["id"]))
        self.check(self.rows("job")[0], unit="job", units="1", project="t", name="sh -c echo hi")


if __name__ == "__main__":
    MODEL.append(sys.argv.pop(2))
    main()
