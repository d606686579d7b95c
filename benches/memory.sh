#!/usr/bin/env bash
# A 2.2 GB pair that is not in the page cache: with memory for it, and under a memory limit that neither side fits into.
#
# usage: benches/memory.sh DIR [RUNS]
#
# DIR holds, or gets, the pair DIR/base and DIR/ft (TinyLlama-1.1B's shape, bf16, 5 shards) and the results of runs.
# The limit is a memory control group: the user must be allowed to make one. PYTHON names a Python with torch and
# safetensors [default: python3]; only making the pair needs them.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(realpath -m "${1:?usage: benches/memory.sh DIR [RUNS]}")
runs=${2:-5}
python=${PYTHON:-python3}
cargo build --release --quiet
us="target/release/hft-surgery --quiet"
[ -d "$dir/ft" ] || "$python" benches/peers/make_pair.py "$dir" 1b
base=$dir/base tuned=$dir/ft
export BENCH_DIR=$dir COLD=$dir/base:$dir/ft WARM=0
bytes=$(cat "$tuned"/*.safetensors | wc -c)
turns() { "$python" benches/turns.py "$runs" "$@"; }
linear="merge --no-sync --method linear --model $base:weight=0.5 --model $tuned:weight=0.5 --out {out}"
element="reset --no-sync --base $base --tuned $tuned --granularity element --out {out}"

compare() {
    echo
    echo "Reading both sides (bar: diff <= 1.1 x cat)"
    turns $((2 * bytes)) "cat both=cat $base/*.safetensors $tuned/*.safetensors" \
        "diff=$us diff $base $tuned; [ \$? -eq 1 ]" "diff --no-mmap=$us diff --no-mmap $base $tuned; [ \$? -eq 1 ]"
    echo
    echo "Reading one side and hashing it twice"
    turns "$bytes" "sha256sum=sha256sum $tuned/*.safetensors" "verify=$us verify $tuned"
    echo
    echo "Reading both sides and writing one (bar: linear <= 1.2 x cp -r and cat)"
    turns $((2 * bytes)) "cp -r ft, cat base=cp -r $tuned {out} && cat $base/*.safetensors" \
        "linear=$us $linear" "reset, element=$us $element"
}

lscpu | sed -n 's/^Model name: */CPU: /p'
echo "threads: $(nproc); pair: $bytes bytes a side, not in the page cache"
compare
echo
export LIMIT=1500000000
echo "Under a memory limit of $LIMIT bytes"
compare
