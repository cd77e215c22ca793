#!/bin/sh
# What `make run` does: a question about a real document, answered on this machine, and what the answer cost.
set -eu
cd "$(dirname "$0")/.."
document=/usr/share/common-licenses/GPL-3
[ -r "$document" ] || document=README.md
echo "document: $document ($(wc -c <"$document") bytes)"
echo "question: What is this document, and what does it guarantee to its readers? Answer briefly."
echo
exec ./frugal run --document "$document" --cut-document --max-tokens 120 \
  --prompt "What is this document, and what does it guarantee to its readers? Answer briefly."
