#!/usr/bin/env python3
"""The docs tell the truth: relative links resolve, `make` targets exist, and every `./frugal ...` command that is shown
names a subcommand and options that the built command has (asked by --help)."""

import functools
import pathlib
import re
import shlex
import subprocess

import rule


def anchors(text):
    """GitHub's names of the headings."""
    found, fence = set(), False
    for line in text.splitlines():
        fence ^= line.lstrip().startswith("```")
        if not fence and (match := re.match(r"#{1,6}\s+(.*)", line)):
            name = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", match.group(1).strip().lower())).replace(" ", "-")
            found.add(name)
    return found


def links(text):
    """(line, target) of every [text](target) outside code."""
    fence = False
    for number, line in enumerate(text.splitlines(), 1):
        fence ^= line.lstrip().startswith("```")
        if fence:
            continue
        for match in re.finditer(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)", re.sub(r"`[^`]*`", "", line)):
            yield number, match.group(1)


def commands(text):
    """(line, command) of fenced shell lines and of inline code that starts with ./frugal or make."""
    fence, number, lines = False, 0, text.splitlines()
    while number < len(lines):
        line = lines[number]
        number += 1
        if line.lstrip().startswith("```"):
            fence = not fence
            continue
        if not fence:
            for match in re.finditer(r"`((?:\./frugal|make) [^`]+)`", line):
                yield number, match.group(1)
            continue
        start, shown = number, line.strip().removeprefix("$ ")
        if not re.match(r"(\w+=\S+ )*(\./frugal|make)(\s|$)", shown):
            continue
        while shown.endswith("\\") and number < len(lines):
            shown = shown[:-1] + " " + lines[number].strip()
            number += 1
        yield start, shown


def words_of(command):
    """The words of the first simple command: up to a pipe, a redirection, a comment or the next command."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words = []
    for word in lexer:
        if set(word) <= set("|&;<>()"):
            break
        words.append(word)
    while words and re.match(r"\w+=", words[0]):
        words.pop(0)
    return words


def make_help(binary):
    @functools.lru_cache(maxsize=None)
    def help_of(path):
        done = subprocess.run([binary, *path, "--help"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return done.stdout if done.returncode == 0 else None
    return help_of


def subcommands_in(text):
    found, inside = set(), False
    for line in text.splitlines():
        if re.match(r"\S.*:\s*$", line):
            inside = line.strip().lower() == "subcommands:"
        elif inside and (match := re.match(r"  (\w[\w-]*)(?:\s|$)", line)):
            found.add(match.group(1))
    return found


def options_in(text):
    return set(re.findall(r"(?<![\w-])(--?[A-Za-z][\w-]*)", text))


def check_command(words, help_of):
    """What is wrong with `./frugal words`, or None."""
    path = ()
    text = help_of(path)
    if text is None:
        return "`frugal --help` failed"
    known = options_in(text)
    for position, word in enumerate(words):
        if word == "--":
            return None
        if re.fullmatch(r"[A-Z][A-Z_]*|\.\.\.|<.*|\[.*", word):  # a placeholder: ./frugal ARGS
            return None if position == 0 else check_options(words[position:], known, path)
        if word.startswith("-") and len(word) > 1:
            option = word.split("=")[0]
            if option not in known and not re.fullmatch(r"-\d+(\.\d+)?", option):
                return f"`{' '.join(('frugal', *path))}` has no option {option}"
            continue
        names = subcommands_in(text)
        if not names:
            continue  # an argument
        if word not in names:
            if position and words[position - 1].startswith("-"):
                continue  # the value of an option
            return f"`{' '.join(('frugal', *path))}` has no subcommand {word}"
        path += (word,)
        text = help_of(path)
        if text is None:
            return f"`frugal {' '.join(path)} --help` failed"
        known |= options_in(text)
    if subcommands_in(text) and not any(w.startswith("-") for w in words):
        return f"`{' '.join(('frugal', *path))}` needs a subcommand"
    return None


def check_options(words, known, path):
    for word in words:
        if word == "--":
            return None
        if word.startswith("--") and word.split("=")[0] not in known:
            return f"`{' '.join(('frugal', *path))}` has no option {word.split('=')[0]}"
    return None


def check(root, args):
    root = pathlib.Path(root)
    names = rule.tracked_files(root)
    pages = [n for n in names if n.endswith(".md")]
    make_targets = set()
    if (root / "Makefile").exists():
        make_targets = set(re.findall(r"^([\w-]+):", rule.read(root, "Makefile"), re.M))
    help_of = make_help(args.frugal) if args.frugal else None
    found = []
    for name in pages:
        text = rule.read(root, name)
        for line, target in links(text):
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue  # another site: not looked at
            path, _, anchor = target.partition("#")
            file = (root / name).parent / path if path else root / name
            if not file.exists():
                found.append(f"{name}:{line}: the link to {target} leads nowhere")
            elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
                found.append(f"{name}:{line}: {path or name} has no heading #{anchor}")
        for line, command in commands(text):
            try:
                words = words_of(command)
            except ValueError as error:
                found.append(f"{name}:{line}: `{command}` does not parse: {error}")
                continue
            if words and words[0] == "make":
                for target in words[1:]:
                    if "=" not in target and not target.startswith("-") and target not in make_targets:
                        found.append(f"{name}:{line}: the Makefile has no target {target}")
            elif words and words[0] == "./frugal" and help_of:
                problem = check_command(words[1:], help_of)
                if problem:
                    found.append(f"{name}:{line}: {problem}")
    return found


FAKE_COMMAND = """#!/bin/sh
case "$*" in
  "--help") printf 'frugal\\nOptions:\\n  -h,--help   help\\n\\nSubcommands:\\n  run     answers\\n  bench   times\\n' ;;
  "run --help") printf 'answers\\nPositionals:\\n  PROMPT\\nOptions:\\n  -m,--model FILE\\n  --json\\n' ;;
  "bench --help") printf 'times\\nSubcommands:\\n  llm     the engine\\n' ;;
  "bench llm --help") printf 'the engine\\nOptions:\\n  --quick\\n' ;;
  *) exit 2 ;;
esac
"""


def self_test(args):
    with rule.scratch() as root:
        root = pathlib.Path(root)
        rule.plant(root, {"fake": FAKE_COMMAND, "Makefile": "run:\n\ttrue\n"})
        (root / "fake").chmod(0o755)
        args.frugal = str(root / "fake")
        rule.plant(root, {
            "docs/a.md": "# One two\n[b](../README.md#start-here) [self](#one-two) [far](https://example.org)\n",
            "README.md": "## Start here!\n```sh\n$ make run\n./frugal ARGS\n./frugal run -m x.gguf \"a | b\" --json | cat\n"
                         "./frugal bench llm \\\n  --quick  # quick\n./frugal run -- --what\n```\n",
        })
        rule.expect(check(root, args))
        rule.plant(root, {
            "docs/a.md": "[b](../GONE.md)\n[c](../README.md#nowhere)\n",
            "README.md": "## Start here!\n```\n$ make fun\n./frugal walk\n./frugal run --fast x\n./frugal bench llm \\\n"
                         "  --slow\n./frugal bench\n```\nand `./frugal bench dnn` too\n",
        })
        rule.expect(check(root, args), "docs/a.md:1", "no heading #nowhere", "no target fun", "no subcommand walk",
                    "no option --fast", "README.md:6: `frugal bench llm` has no option --slow", "needs a subcommand",
                    "no subcommand dnn")


if __name__ == "__main__":
    rule.main(check, self_test, [("--frugal", {"help": "the built command"})])
