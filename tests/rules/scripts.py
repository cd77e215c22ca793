#!/usr/bin/env python3
"""Python scripts compile under this Python and import nothing beyond it and each other; shell scripts parse; scripts
that are meant to be run are executable."""

import ast
import pathlib
import subprocess
import sys

import rule


def check(root, _args):
    names = rule.tracked_files(root)
    own = {pathlib.PurePath(n).stem for n in names if n.endswith(".py")}
    own |= {part for n in names if n.endswith(".py") for part in pathlib.PurePath(n).parts[:-1]}
    found = []
    for name in names:
        path = pathlib.Path(root) / name
        text = path.read_bytes()
        first = text.split(b"\n", 1)[0]
        if name.endswith(".py"):
            try:
                tree = ast.parse(text, name)
                compile(tree, name, "exec")
            except (SyntaxError, ValueError) as error:
                found.append(f"{name}: does not compile: {error}")
                continue
            for node in tree.body:  # imports at the top: what a script cannot start without
                modules = [a.name for a in node.names] if isinstance(node, ast.Import) else (
                    [node.module] if isinstance(node, ast.ImportFrom) and not node.level else [])
                for module in (m.split(".")[0] for m in modules):
                    if module not in sys.stdlib_module_names and module not in own:
                        found.append(f"{name}:{node.lineno}: imports {module}, which Python does not bring along")
        elif first.startswith(b"#!") and first.rstrip().endswith((b"sh", b"bash")):
            shell = "bash" if b"bash" in first else "sh"
            done = subprocess.run([shell, "-n", path], capture_output=True, text=True)
            if done.returncode:
                found.append(f"{name}: {done.stderr.strip()}")
        if first.startswith(b"#!") and not path.stat().st_mode & 0o100 and not name.startswith("tests/"):
            found.append(f"{name}: starts with {first.decode(errors='replace')} but is not executable (chmod +x)")
    return found


def self_test(_args):
    with rule.scratch() as root:
        root = pathlib.Path(root)
        rule.plant(root, {"a.py": "import os\nimport b\n", "b.py": "def f():\n    import numpy\n", "c.sh": "#!/bin/sh\ntrue\n"})
        (root / "c.sh").chmod(0o755)
        rule.expect(check(root, None))
        rule.plant(root, {"bad.py": "def f(:\n", "far.py": "import numpy\n", "bad.sh": "#!/bin/sh\nif true; then\n",
                          "still": "#!/usr/bin/env python3\n"})
        (root / "bad.sh").chmod(0o755)
        rule.expect(check(root, None), "bad.py: does not compile", "far.py:1: imports numpy", "bad.sh", "still: starts with")


if __name__ == "__main__":
    rule.main(check, self_test)
