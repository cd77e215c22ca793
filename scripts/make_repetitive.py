#!/usr/bin/env python3
"""Input that its answer repeats, from this repository's own text: bench/llm/repetitive.jsonl for `frugal cot eval`.

A "quote" asks for a piece of a document once more, an "edit" for a piece of code with one name changed.
    python3 scripts/make_repetitive.py > bench/llm/repetitive.jsonl
"""
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PIECE = 1400  # characters: more than the 256 tokens of an answer
DOCUMENTS = ["ARCHITECTURE.md", "CONTRIBUTING.md", "docs/meter.md", "docs/cascade.md", "docs/dnn.md"]
SOURCES = ["src/base/text.cc", "src/base/file.cc", "src/base/team.cc", "src/llm/vocab/tokenizer.cc",
           "src/llm/decode/sampler.cc", "src/llm/model/config.cc", "src/llm/tensor/matrix.cc", "src/meter/ledger.cc",
           "src/jobs/queue.cc", "src/budget/allocator.cc", "src/cli/console.cc", "src/cli/config.cc"]
PIECES_EACH = 2


def pieces(text, n):
    """`n` pieces of whole lines, from a third and two thirds of the text on."""
    for i in range(1, n + 1):
        begin = text.find("\n", len(text) * i // (n + 2)) + 1
        end = text.find("\n", begin + PIECE)
        if begin > 0 and end > 0:
            yield text[begin:end]


def quote(piece):
    words = " ".join(piece.split(" ")[:6])
    return f"Document:\n\n{piece}\n\nThe same document once more, word for word:\n\n{words}"


def edit(piece):
    names = re.findall(r"\b[a-z]+_[a-z_]+\b", piece)
    if not names:
        return None
    name = max(sorted(set(names)), key=names.count)
    lines = piece.split("\n")
    first = re.sub(rf"\b{name}\b", "renamed", "\n".join(lines[:2]))
    return f"```cpp\n{piece}\n```\n\nThe same code, with `{name}` renamed to `renamed`:\n\n```cpp\n{first}\n"


def main():
    for task, paths, make in (("quote", DOCUMENTS, quote), ("edit", SOURCES, edit)):
        n = 0
        for path in paths:
            if not (ROOT / path).exists():
                continue
            for i, piece in enumerate(pieces((ROOT / path).read_text(), PIECES_EACH)):
                prompt = make(piece)
                if prompt and n < 10:
                    print(json.dumps({"id": f"{path}#{i}", "task": task, "question": prompt, "answer": "-"}))
                    n += 1
        if n < 10:
            sys.exit(f"only {n} pieces for {task}")


if __name__ == "__main__":
    main()
