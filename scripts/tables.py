#!/usr/bin/env python3
"""Writes the tables of docs/benchmarks.md (and the one of README.md) from the JSON rows under bench/results/.

    tables.py             rewrites the pages
    tables.py --check     exits with 1 when a page is out of date or a result lacks its circumstances

A table stands between `<!-- table: PATTERN -->` and `<!-- end -->`; PATTERN names result files by glob, with `; bench=NAME` or
`; name=REGEX` to choose rows.
"""

import argparse
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ("docs/benchmarks.md", "README.md")
REQUIRED = ("bench", "name", "unit", "ours", "spread", "n", "cpu", "commit", "compiler", "flags", "command", "date")


class TableError(Exception):
    pass


def read_rows(path):
    """The rows of one result file, refused without their circumstances."""
    rows = json.loads(path.read_text())
    if not isinstance(rows, list):
        raise TableError(f"{path.relative_to(ROOT)}: not a list of rows")
    for row in rows:
        missing = [key for key in REQUIRED if key not in row]
        if missing:
            raise TableError(f"{path.relative_to(ROOT)}: a row without {', '.join(missing)}")
    return rows


def shown(value):
    if value is None:
        return ""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def worst_of_contract(rows):
    """Without the better ones of rows of a contract ("decode_8000 (decode at depth 8000, f16)") that several runs made, of one type each."""
    def contract(row):
        match = re.match(r"([a-z]+_[a-z0-9_]+) \([^)]*?(, cache of [^,)]*)?(,[^)]*)?\)$", row["name"])
        return match and match.groups()[:2]

    def badness(row):
        return row["ours"] if row["name"].startswith("verify") else -row["ratio"]

    worst = {}
    for row in rows:
        key = contract(row)
        if key and (key not in worst or badness(row) > badness(worst[key])):
            worst[key] = row
    return [row for row in rows if not contract(row) or worst[contract(row)] is row]


def table(spec):
    pattern, *conditions = [part.strip() for part in spec.split(";")]
    files = sorted((ROOT / "bench" / "results").glob(pattern))
    rows = [row for path in files for row in read_rows(path)]
    for condition in conditions:
        key, _, wanted = condition.partition("=")
        rows = [row for row in rows if re.search(wanted, str(row.get(key, "")))]
    rows = worst_of_contract(rows)
    if not rows:
        return "No results are kept for this table yet.\n"
    bounded = any("ratio at the bound" in row for row in rows)  # by what the machine reads or multiplies
    heads = ["", "model", "frugal", "peer", "unit", "ratio", "spread", "peer is"] + bounded * ["of bound", "ratio at bound"]
    lines = ["|" + "".join(f" {head} |" if head else " |" for head in heads), "|" + "---|" * len(heads)]
    for row in rows:
        ratio = "" if row.get("ratio") in (None, 0) else f"**{row['ratio']:.2f}**"
        line = (f"| {row['name']} | {row.get('model', '')} | {shown(row['ours'])} | {shown(row.get('peer'))} | {row['unit']} | {ratio} | "
                f"{100 * row['spread']:.1f} % | {row.get('peer_name') or ''} |")
        if bounded:
            line += f" {row['of bound, %']:.0f} % | {row['ratio at the bound']:.2f} |" if "ratio at the bound" in row else " | |"
        lines.append(line)
    told = sorted({f"{row['cpu']}{' (' + row['isa'] + ')' if row.get('isa') else ''}, {row.get('threads', '?')} threads, commit {row['commit']}, {row['date'][:10]}: "
                   f"`{row['command']}`" for row in rows})
    return "\n".join(lines) + "\n\n" + "\n".join(f"- {line}" for line in told) + "\n"


def rewritten(text):
    def replace(match):
        return f"{match.group(1)}\n{table(match.group(2))}<!-- end -->"

    return re.sub(r"(<!-- table: (.*?) -->)\n.*?<!-- end -->", replace, text, flags=re.DOTALL)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page is out of date")
    args = parser.parse_args()
    stale = []
    for path in sorted((ROOT / "bench" / "results").glob("*.json")):
        read_rows(path)
    for name in PAGES:
        page = ROOT / name
        if not page.exists():
            continue
        before = page.read_text()
        after = rewritten(before)
        if before != after:
            stale.append(name)
            if not args.check:
                page.write_text(after)
    if args.check and stale:
        print(f"{', '.join(stale)} out of date: run scripts/tables.py and commit the result", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TableError as error:
        sys.exit(f"tables.py: {error}")
