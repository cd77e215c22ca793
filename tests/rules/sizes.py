#!/usr/bin/env python3
"""No tracked file over 1 MiB, no source over 800 lines: what grows beyond is data to be made, or a file to be split.

What a script writes between `<!-- generated: NAME -->` and `<!-- end -->` is a reference to look things up in, and
does not count.
"""

import pathlib
import re

import rule

MAX_BYTES = 1 << 20
MAX_LINES = 800
GENERATED = re.compile(r"<!-- generated: [^>]*-->.*?<!-- end -->", re.DOTALL)
SOURCES = (".h", ".cc", ".py", ".sh", ".cmake", ".txt", ".md", ".js", ".css", ".html", ".yml")


def check(root, _args):
    found = []
    for name in rule.tracked_files(root):
        size = (pathlib.Path(root) / name).stat().st_size
        if size > MAX_BYTES:
            found.append(f"{name}: {size / MAX_BYTES:.1f} MiB; at most 1 MiB may be tracked")
        elif name.endswith(SOURCES) and not name.startswith(("bench/results/", "tests/data/", "examples/data/")):
            lines = GENERATED.sub("", rule.read(root, name)).count("\n")
            if lines > MAX_LINES:
                found.append(f"{name}: {lines} lines; split it (at most {MAX_LINES}, aim at 500)")
    return found


def self_test(_args):
    with rule.scratch() as root:
        root = pathlib.Path(root)
        rule.plant(root, {"a.cc": "\n" * 800, "b.bin": b"\0" * MAX_BYTES})
        rule.plant(root, {"a.md": "<!-- generated: table -->" + "\n" * 900 + "<!-- end -->" + "\n" * 800})
        rule.expect(check(root, None))
        rule.plant(root, {"a.md": "<!-- generated: table -->" + "\n" * 801})  # no end: no generated part
        rule.expect(check(root, None), "a.md: 801 lines")
        rule.plant(root, {"a.md": "", "long.cc": "\n" * 801, "big.bin": b"\0" * (MAX_BYTES + 1)})
        rule.expect(check(root, None), "long.cc: 801 lines", "big.bin: 1.0 MiB")


if __name__ == "__main__":
    rule.main(check, self_test)
