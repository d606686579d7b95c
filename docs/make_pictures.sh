#!/usr/bin/env bash
# Makes the pictures of this folder: `diff` of a model and its fine-tune in a terminal, as SVG and as a page.
#
# usage: docs/make_pictures.sh BASE TUNED      (needs Node.js and Chromium; CHROMIUM names the browser)
set -euo pipefail
cd "$(dirname "$0")/.."
base=$(realpath "$1") tuned=$(realpath "$2")
cargo build --release --quiet
us=$PWD/target/release/hft-surgery docs=$PWD/docs
npm ci --prefix tests/page --no-audit --no-fund --silent
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ln -s "$base" "$work/SmolLM2-135M"
ln -s "$tuned" "$work/SmolLM2-135M-tuned"
cd "$work"
# Exit code 1 says that they differ.
"$us" diff SmolLM2-135M SmolLM2-135M-tuned --top 8 --color always --html page.html --svg "$docs/diff.svg" > table.txt || [ $? -eq 1 ]
node "$docs/../tests/page/check.mjs" page.html "$docs"
node "$docs/../tests/page/terminal.mjs" table.txt '$ hft-surgery diff SmolLM2-135M SmolLM2-135M-tuned --top 8' "$docs/diff-terminal.png"
