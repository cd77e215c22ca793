#!/usr/bin/env python3
"""What library sources may not say: throw, print, exit or read the environment. nm (silent.py) sees what is linked;
this sees what is written, also in a sanitizer build and inside headers."""

import pathlib
import re

import rule

FORBIDDEN = [
    (r"\bthrow\b(?!\s*\()", "throws: return an Error"),
    (r"\bthrow\s*\(", "throws: return an Error"),
    (r"\b(?:std::)?(?:printf|puts|putchar|perror)\s*\(", "prints: use the log sink (frugal/log.h)"),
    (r"\bstd::(?:cout|cerr|clog)\b", "prints: use the log sink (frugal/log.h)"),
    (r"(?<![\w.>:])(?:std::|::)?(?:exit|_exit|_Exit|quick_exit|abort|terminate)\s*\(", "ends the process: return an Error"),
    (r"\b(?:secure_)?getenv\s*\(", "reads the environment: take an option"),
    (r"\bassert\s*\(", "assert() vanishes in release builds: FRUGAL_CHECK or FRUGAL_DCHECK"),
]
EXEMPT = {"src/base/check.cc"}  # a failed check prints and aborts: nothing better is left to do
# A forked child whose exec failed may only _exit.
EXEMPT_USES = {("src/meter/command.cc", "_exit"), ("src/jobs/keeper.cc", "_exit")}


def check(root, _args):
    found = []
    for name in rule.tracked_files(root):
        if not name.startswith(("src/", "include/")) or not name.endswith((".h", ".cc")):
            continue
        # The command prints and reads the environment by trade; CLI11's checks are exceptions.
        if name.startswith("src/cli/") or name in EXEMPT:
            continue
        text = rule.without_comments(rule.read(root, name))
        for pattern, why in FORBIDDEN:
            for match in re.finditer(pattern, text):
                line = text.count("\n", 0, match.start()) + 1
                if (name, match.group(0).strip(" (:")) in EXEMPT_USES:
                    continue
                found.append(f"{name}:{line}: `{match.group(0).strip()}` {why}")
    return found


def self_test(_args):
    with rule.scratch() as root:
        root = pathlib.Path(root)
        rule.plant(root, {
            "src/base/ok.cc": '// never throw, printf( or exit(\nconst char* s = "throw exit(1) printf(";\n'
                              "void f() { snprintf(b, 3, s); x.exit(); on_exit(); static_assert(1); }\n",
            "src/cli/main.cc": 'int main() { printf("hello"); }\n',
            "src/base/check.cc": "void f() { abort(); }\n",
            "src/meter/command.cc": "void f() { ::_exit(127); }\n",
        })
        rule.expect(check(root, None))
        rule.plant(root, {
            "src/base/a.cc": "void f() {\n  throw 1;\n}\n",
            "src/base/b.cc": 'void f() { std::printf("x"); }\n',
            "src/base/c.cc": "void f() { std::exit(1); }\n",
            "src/base/d.cc": 'auto e = std::getenv("X");\n',
            "include/frugal/e.h": "inline void f() { std::cerr << 1; }\n",
            "src/base/g.cc": "void f() { assert(1); }\n",
        })
        rule.expect(check(root, None), "a.cc:2: `throw`", "b.cc:1", "c.cc:1", "d.cc:1", "e.h:1", "g.cc:1")


if __name__ == "__main__":
    rule.main(check, self_test)
