#!/usr/bin/env python3
"""Writes the generated parts of the documentation: the option tables of docs/cli.md from `frugal docs options`.

    update_docs.py             rewrites what is out of date
    update_docs.py --check     says what is out of date, and exits with 1 if anything is

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

import argparse
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def with_part(text, name, part):
    """`text` with the generated part `name` replaced."""
    begin = f"<!-- generated: {name} -->\n"
    if text.count(begin) != 1:
        raise SystemExit(f"expected one line `{begin.strip()}`")
    head, rest = text.split(begin)
    if "<!-- end -->" not in rest:
        raise SystemExit(f"the part `{name}` has no `<!-- end -->`")
    return head + begin + part.rstrip("\n") + "\n<!-- end -->" + rest.split("<!-- end -->", 1)[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a part is out of date")
    parser.add_argument("--command", default=os.environ.get("FRUGAL_COMMAND", ROOT / "frugal"), help="the frugal command")
    args = parser.parse_args()
    options = subprocess.run([args.command, "docs", "options"], check=True, capture_output=True, text=True).stdout
    page = ROOT / "docs" / "cli.md"
    before = page.read_text()
    after = with_part(before, "options", options)
    if before == after:
        return 0
    if args.check:
        print(f"{page.relative_to(ROOT)} is out of date: run scripts/update_docs.py and commit it", file=sys.stderr)
        return 1
    page.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
