#!/usr/bin/env python3
"""The library is silent: `nm` on our archives shows nothing that prints, ends the process or reads the environment.

Not for sanitizer builds, whose runtime brings such symbols along.
"""

import pathlib
import re
import subprocess

import rule

FORBIDDEN = {
    "abort", "exit", "_exit", "_Exit", "quick_exit", "__assert_fail", "raise",
    "printf", "vprintf", "puts", "putchar", "perror", "__printf_chk", "__vprintf_chk", "stdout", "stderr",
    "_ZSt4cout", "_ZSt4cerr", "_ZSt4clog", "getenv", "secure_getenv",
}
EXEMPT_OBJECTS = {"check.cc.o"}  # src/base/check.cc: a failed FRUGAL_CHECK prints and aborts
# src/meter/command.cc, src/jobs/keeper.cc: a forked child whose exec failed.
EXEMPT_USES = {("command.cc.o", "_exit"), ("keeper.cc.o", "_exit")}


def check(_root, args):
    found = []
    for archive in args.archives:
        nm = subprocess.run(["nm", "--undefined-only", archive], capture_output=True, text=True)
        if nm.returncode:
            found.append(f"{archive}: nm failed: {nm.stderr.strip()}")
            continue
        member = "?"
        for line in nm.stdout.splitlines():
            if line.endswith(":"):
                member = line[:-1]
                continue
            symbol = re.sub(r"@.*", "", line.split()[-1]) if line.split() else ""
            if symbol in FORBIDDEN and member not in EXEMPT_OBJECTS and (member, symbol) not in EXEMPT_USES:
                found.append(f"{pathlib.Path(archive).name}({member}) refers to {symbol}: libraries do not print, exit "
                             "or read the environment (CONTRIBUTING.md)")
    if not args.archives:
        found.append("no archive was given to look at")
    return found


def self_test(args):
    with rule.scratch() as root:
        root = pathlib.Path(root)
        rule.plant(root, {
            "loud.cc": '#include <cstdio>\n#include <cstdlib>\nvoid f() { std::printf("%d\\n", 1); std::exit(1); }\n',
            "check.cc": "#include <cstdlib>\nvoid g() { std::abort(); }\n",
            "command.cc": "#include <unistd.h>\nvoid k() { _exit(127); }\n",
            "quiet.cc": "#include <string>\nstd::string h() { return std::to_string(1); }\n",
        })
        for name in ("loud", "check", "command", "quiet"):
            subprocess.run([args.compiler, "-c", "-O1", f"{name}.cc", "-o", f"{name}.cc.o"], cwd=root, check=True)
        for archive, members in (("good.a", ["check", "command", "quiet"]), ("bad.a", ["quiet", "loud"])):
            subprocess.run(["ar", "rc", archive, *(f"{m}.cc.o" for m in members)], cwd=root, check=True)
        args.archives = [str(root / "good.a")]
        rule.expect(check(root, args))
        args.archives = [str(root / "good.a"), str(root / "bad.a")]
        rule.expect(check(root, args), "bad.a(loud.cc.o) refers to exit", "bad.a(loud.cc.o) refers to printf")
        args.archives = [str(root / "missing.a")]
        rule.expect(check(root, args), "nm failed")


if __name__ == "__main__":
    rule.main(check, self_test, [("archives", {"nargs": "*"}), ("--compiler", {"default": "c++"})])
