#!/usr/bin/env python3
"""Nothing tracked names a path of somebody's machine or the host of a package registry; text is UTF-8 with Unix lines."""

import pathlib
import re

import rule

PATTERNS = [
    (re.compile(r"(?<![\w./~$}>-])/(?:work|root|Users|home/(?!runner\b)\w+)/"), "a path of one machine"),
    (re.compile(r"(?:extra-)?index[-_]url\s*[=:]|trusted[-_]host|_authToken", re.I), "a package registry's address"),
    (re.compile(r"https?://[^\s\"'<>)]*(?:/simple\b|artifactory|/pypi/|:\d+/(?:debian|npm|simple))", re.I),
     "a package registry's address"),
    (re.compile(r"https?://(?:10\.|192\.168\.|172\.(?:1[6-9]|2\d|3[01])\.)"), "a private network's address"),
]
THIS = "tests/rules/hygiene.py"  # the patterns and the planted violations


def check(root, _args):
    found = []
    for name in rule.tracked_files(root):
        data = (pathlib.Path(root) / name).read_bytes()
        if b"\0" in data or name == THIS:
            continue
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            if name.endswith((".h", ".cc", ".py", ".md", ".txt", ".cmake", ".sh", ".json")):
                found.append(f"{name}: not UTF-8 at byte {error.start}")
            continue
        if "\r\n" in text and name.endswith((".h", ".cc", ".py", ".md", ".txt", ".cmake", ".sh")):
            found.append(f"{name}: carriage returns")
        for number, line in enumerate(text.splitlines(), 1):
            for pattern, what in PATTERNS:
                match = pattern.search(line)
                if match:
                    found.append(f"{name}:{number}: {what}: {match.group(0)}")
    return found


def self_test(_args):
    with rule.scratch() as root:
        root = pathlib.Path(root)
        rule.plant(root, {"ok.md": "see docs/work/x, $HOME/work/, https://example.org/a, ~/.cache/frugal, net/root/x\n",
                          "data.bin": b"\0/root/x"})
        rule.expect(check(root, None))
        rule.plant(root, {
            "a.md": "built in /work/tree/x\n",
            "b.py": "open('/home/ann/model.gguf')\n",
            "c.txt": "--index-url=https://host/\n",
            "d.sh": "curl http://10.0.0.7/x\n",
            "e.md": b"caf\xe9\n",
            "f.cc": b"int a;\r\n",
        })
        rule.expect(check(root, None), "a.md:1", "b.py:1", "c.txt:1", "d.sh:1", "e.md: not UTF-8", "f.cc: carriage")


if __name__ == "__main__":
    rule.main(check, self_test)
