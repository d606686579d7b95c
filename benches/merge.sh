#!/usr/bin/env bash
# Merging a 2.2 GB pair: against mergekit in turn, and against copying the same bytes.
#
# usage: benches/merge.sh DIR [RUNS [RUNS_OF_SLOW]]
#
# DIR holds, or gets, the pair DIR/base and DIR/ft (TinyLlama-1.1B's shape, bf16, 5 shards) and the results of runs.
# PYTHON names a Python with mergekit, torch and safetensors [default: python3]; mergekit-yaml must stand beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(realpath -m "${1:?usage: benches/merge.sh DIR [RUNS [RUNS_OF_SLOW]]}")
runs=${2:-3}
slow=${3:-1}
python=${PYTHON:-python3}
peer="$(dirname "$(command -v "$python")")/mergekit-yaml"
cargo build --release --quiet
us="target/release/hft-surgery --quiet merge --no-sync --out {out}"
[ -d "$dir/ft" ] || "$python" benches/peers/make_pair.py "$dir" 1b
export BENCH_DIR=$dir READ=$dir/base:$dir/ft HF_HUB_OFFLINE=1
bytes=$(cat "$dir"/ft/*.safetensors | wc -c)
recipes=$(mktemp -d)
trap 'rm -rf "$recipes"' EXIT

# NAME METHOD BASE(0|1) PARAMETERS-OF-FT PARAMETERS
recipe() {
    local base='' first=''
    if [ "$3" = 1 ]; then base="base_model: $dir/base"; else first="- {model: $dir/base, parameters: {weight: 0.5}}"; fi
    printf '%s\n' "merge_method: $2" "$base" "models:" "$first" "- {model: $dir/ft, parameters: {$4}}" \
        "parameters: {$5}" "dtype: bfloat16" >"$recipes/$1.yml"
}
recipe linear linear 0 "weight: 0.5" ""
recipe slerp slerp 1 "" "t: 0.4"
recipe task_arithmetic task_arithmetic 1 "weight: 0.6" ""
recipe dare_linear dare_linear 1 "weight: 0.6, density: 0.5" ""
recipe ties ties 1 "weight: 0.6, density: 0.5" ""
recipe breadcrumbs breadcrumbs 1 "weight: 0.6, density: 0.5, gamma: 0.01" ""
recipe della della 1 "weight: 0.6, density: 0.5, epsilon: 0.1" ""
pair() { "$python" benches/turns.py "$1" "$bytes" "$2=$us $recipes/$2.yml" "mergekit $2=$peer $recipes/$2.yml {out} --no-copy-tokenizer"; }

lscpu | sed -n 's/^Model name: */CPU: /p'
echo "threads: $(nproc); pair: $bytes bytes a side, page cache warm; mergekit $("$python" -c 'from importlib.metadata import version; print(version("mergekit"))')"
echo
echo "Against copying (bar: linear <= 2 x cp -r)"
"$python" benches/turns.py "$runs" "$bytes" "cp -r=cp -r $dir/ft {out}" "linear=$us $recipes/linear.yml"
echo
echo "Element by element (bar: mergekit >= 10 x)"
export TIMES=3
for name in linear slerp task_arithmetic dare_linear; do pair "$runs" $name; done
echo
echo "By rank (bar: mergekit >= 30 x)"
export WARM=0
for name in ties breadcrumbs della; do pair "$slow" $name; done
