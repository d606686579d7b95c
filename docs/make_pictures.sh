#!/usr/bin/env bash
# Makes the pictures of this folder: `diff` of a model and a fine-tune of half of it in a terminal, as SVG and as a page, and
# the pages of the fixtures that show other states.
#
# usage: docs/make_pictures.sh BASE TUNED PLAN [HFT_SURGERY]      (needs Node.js and Chromium; CHROMIUM names the browser)
set -euo pipefail
cd "$(dirname "$0")/.."
base=$(realpath "$1") tuned=$(realpath "$2") plan=$(realpath "$3")
[ $# -gt 3 ] || cargo build --release --quiet
us=$(realpath "${4:-target/release/hft-surgery}") docs=$PWD/docs page=$PWD/tests/page
npm ci --prefix "$page" --no-audit --no-fund --silent
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$page/pages.sh" "$us" "$work"
ln -s "$base" "$work/SmolLM2-135M"
ln -s "$tuned" "$work/SmolLM2-135M-half"
cp "$plan" "$work/plan.json"
cd "$work"
# Exit code 1 says that they differ.
"$us" diff SmolLM2-135M SmolLM2-135M-half --top 8 --color always --html real.html --svg "$docs/diff.svg" --force >table.txt || [ $? -eq 1 ]
"$us" diff SmolLM2-135M SmolLM2-135M-half --plan plan.json --html real-plan.html --quiet
shot() { node "$page/shot.mjs" "$@"; }
shot real.html 1400x900 light "$docs/diff-light.png"
shot real-plan.html 1400x1500 dark "$docs/diff-dark.png"
shot real-plan.html 390x844 light "$docs/diff-phone.png" '#map td.moved >> nth=14'
shot unlike.html 1024x760 light "$docs/diff-architectures.png"
shot identical.html 768x640 dark "$docs/diff-identical.png"
shot overlap.html 1024x900 light "$docs/diff-three-way.png"
node "$page/terminal.mjs" table.txt '$ hft-surgery diff SmolLM2-135M SmolLM2-135M-half --top 8' "$docs/diff-terminal.png"
