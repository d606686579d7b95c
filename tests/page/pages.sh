#!/usr/bin/env bash
# Makes the pages of seven comparisons from the fixtures: a fine-tune, a half-reset with its plan, two identical models, two
# architectures, two fine-tunes of one base, advice on a merge of three, the spectra of a fine-tune.
#
# usage: tests/page/pages.sh HFT_SURGERY FOLDER
set -euo pipefail
us=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
cd "$(dirname "$0")/../../fixtures"
# Exit code 1 says that they differ.
page() { "$us" diff --html "$out/$1.html" --top 0 --quiet "${@:2}" >/dev/null || [ $? -eq 1 ]; }
"$us" reset --base base --tuned tuned --out "$out/half" --force --quiet >/dev/null
"$us" plan base --out "$out/plan.json" --force --quiet >/dev/null
page tuned base tuned
page half base "$out/half" --plan "$out/plan.json"
page identical base base
page unlike llama/llama2 llama/qwen3
page overlap merge/a merge/b --base merge/base
page advice merge/a merge/b merge/c --base merge/base --advise
page spectrum base tuned --spectrum
