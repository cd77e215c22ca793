#!/usr/bin/env python3
"""Public headers are self-contained: each is the first and only include of a generated file that the build compiles.

The build is the test; this script checks that no header was left out of it, and that the check bites: a header that
needs what it does not include must not compile.
"""

import pathlib
import subprocess

import rule


def generated_text(header):
    return f'#include "{header}"\n#include "{header}"\n'


def check(root, args):
    found = []
    for name in rule.tracked_files(root):
        if not name.startswith("include/") or not name.endswith(".h"):
            continue
        header = name.removeprefix("include/")
        unit = pathlib.Path(args.units) / (header.replace("/", "_") + ".cc")
        if not unit.exists():
            found.append(f"{name}: no generated file compiles this header; configure again (cmake --preset release)")
        elif unit.read_text() != generated_text(header):
            found.append(f"{unit}: not the two includes that it should be")
    return found


def self_test(args):
    with rule.scratch() as root:
        root = pathlib.Path(root)
        rule.plant(root, {
            "include/frugal/good.h": "#pragma once\n#include <string>\ninline std::string f() { return {}; }\n",
            "include/frugal/needy.h": "#pragma once\ninline std::string f() { return {}; }\n",
            "include/frugal/twice.h": "inline int f() { return 1; }\n",
        })
        for name, compiles in (("good", True), ("needy", False), ("twice", False)):
            rule.plant(root, {f"units/frugal_{name}.h.cc": generated_text(f"frugal/{name}.h")})
            done = subprocess.run([args.compiler, "-std=c++20", "-fsyntax-only", "-I", "include",
                                   f"units/frugal_{name}.h.cc"], cwd=root, capture_output=True)
            if (done.returncode == 0) != compiles:
                raise AssertionError(f"{name}.h: compiles = {done.returncode == 0}")
        args.units = str(root / "units")
        rule.expect(check(root, args))
        (root / "units/frugal_good.h.cc").unlink()
        rule.expect(check(root, args), "good.h: no generated file")


if __name__ == "__main__":
    rule.main(check, self_test, [("--units", {"help": "folder of the generated files"}), ("--compiler", {"default": "c++"})])
