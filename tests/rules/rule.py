"""What the house rules share: the list of files, comment stripping, and the main program.

A rule is a script with `check(root, args)`, which returns a list of violations ("path:line: what; what to do"),
and `self_test()`, which plants violations in a scratch tree and raises when one of them goes unseen.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

REPO = pathlib.Path(__file__).resolve().parents[2]
SKIPPED_FOLDERS = {".git", "build", ".cache", "__pycache__"}


def tracked_files(root):
    """Paths relative to `root`: what git knows plus what it would add; without git, all but build folders."""
    root = pathlib.Path(root)
    listed = subprocess.run(["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            capture_output=True) if (root / ".git").exists() else None
    if listed is not None and listed.returncode == 0:
        names = {os.fsdecode(n) for n in listed.stdout.split(b"\0") if n}
        return sorted(n for n in names if (root / n).is_file())
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in SKIPPED_FOLDERS]
        found += [os.path.relpath(os.path.join(folder, f), root) for f in files]
    return sorted(found)


def read(root, name):
    return (pathlib.Path(root) / name).read_text(encoding="utf-8", errors="replace")


def without_comments(text):
    """C++ text with comments and the insides of string and character literals blanked; lines keep their numbers."""
    pattern = re.compile(
        r'//[^\n]*|/\*.*?\*/|R"(?P<tag>[^()\s\\]{0,16})\(.*?\)(?P=tag)"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.S)

    def blank(match):
        token = match.group(0)
        if token.startswith(("//", "/*")):
            return re.sub(r"[^\n]", " ", token)
        return '""' + "\n" * token.count("\n")

    return pattern.sub(blank, text)


def plant(root, files):
    """Writes {path: text or bytes} under `root`."""
    for name, content in files.items():
        path = pathlib.Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content)


def expect(violations, *fragments):
    """Each fragment must occur in exactly one violation, and no violation may be left over."""
    left = list(violations)
    for fragment in fragments:
        hits = [v for v in left if fragment in v]
        if len(hits) != 1:
            raise AssertionError(f"expected one violation with {fragment!r}, got {hits} of {violations}")
        left.remove(hits[0])
    if left:
        raise AssertionError(f"unexpected violations: {left}")


def scratch():
    return tempfile.TemporaryDirectory(prefix="frugal-rule-")


def main(check, self_test, arguments=()):
    """Runs the rule over the repository, or its self-test. `arguments`: [(flag, keyword arguments of argparse)]."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--self-test", action="store_true", help="check that the rule sees planted violations")
    for flag, options in arguments:
        parser.add_argument(flag, **options)
    args = parser.parse_args()
    if args.self_test:
        self_test(args)
        print("the rule sees what was planted")
        return
    violations = check(REPO, args)
    for violation in violations:
        print(violation)
    if violations:
        sys.exit(f"{len(violations)} violation(s)")
    print("clean")
