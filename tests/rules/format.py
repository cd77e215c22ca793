#!/usr/bin/env python3
"""clang-format 14 finds nothing to change. `make format` repairs."""

import pathlib
import shutil
import subprocess

import rule


def check(root, _args):
    tool = shutil.which("clang-format-14")
    if tool is None:
        return ["clang-format-14 is not installed: run `python3 scripts/bootstrap.py`, or apt-get install clang-format-14"]
    names = [n for n in rule.tracked_files(root) if n.endswith((".h", ".cc"))]
    found = []
    for start in range(0, len(names), 50):
        done = subprocess.run([tool, "--dry-run", "-Werror", *names[start:start + 50]], cwd=root, capture_output=True,
                              text=True)
        found += [line.split(" error: ")[0] + " clang-format would change this (`make format`)"
                  for line in done.stderr.splitlines() if " error: " in line]
        if done.returncode and not found:
            found.append(f"clang-format-14 failed: {done.stderr[-500:]}")
    return found


def self_test(_args):
    with rule.scratch() as root:
        root = pathlib.Path(root)
        rule.plant(root, {".clang-format": rule.read(rule.REPO, ".clang-format"), "a.cc": "int f() { return 1; }\n"})
        rule.expect(check(root, None))
        rule.plant(root, {"b.cc": "int  f(){return 1;}\n"})
        if not any("b.cc:1" in v for v in check(root, None)):
            raise AssertionError("ill-formatted b.cc went unseen")


if __name__ == "__main__":
    rule.main(check, self_test)
