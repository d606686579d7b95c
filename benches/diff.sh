#!/usr/bin/env bash
# `diff` of a 2.2 GB pair: against the script people write today, reading both maps once, and memcmp.
#
# usage: benches/diff.sh DIR [RUNS]
#
# DIR holds, or gets, the pair DIR/base and DIR/ft (TinyLlama-1.1B's shape, bf16, 5 shards). PYTHON names a Python
# with torch and safetensors [default: python3].
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(realpath -m "${1:?usage: benches/diff.sh DIR [RUNS]}")
runs=${2:-7}
python=${PYTHON:-python3}
cargo build --release --quiet --example read_map
cargo build --release --quiet
us=target/release/hft-surgery
map=target/release/examples/read_map
[ -d "$dir/ft" ] || "$python" benches/peers/make_pair.py "$dir" 1b
base=$dir/base tuned=$dir/ft
export BENCH_DIR=$dir
bytes=$(cat "$base"/*.safetensors "$tuned"/*.safetensors | wc -c)
# Exit code 1 says that they differ.
diff="$us --quiet diff --json $base $tuned; [ \$? -eq 1 ]"

lscpu | sed -n 's/^Model name: */CPU: /p'
echo "threads: $(nproc); bytes of both sides: $bytes, page cache warm"
echo
echo "A fine-tune (bar: diff <= 1.5 x reading both maps)"
"$python" benches/turns.py "$runs" "$bytes" "read both maps=$map read $base $tuned" "diff=$diff"
echo
echo "Against the script (bar: peer_diff.py >= 20 x diff)"
"$python" benches/turns.py 1 "$bytes" "diff=$diff" "peer_diff.py=$python benches/peers/peer_diff.py $base $tuned"
echo
echo "A checkpoint and a copy of it (bar: memcmp >= 0.8 x diff)"
copy=$dir/copy
rm -rf "$copy" && cp -r "$base" "$copy"
"$python" benches/turns.py "$runs" "$bytes" "memcmp=$map memcmp $base $copy" "diff=$us --quiet diff $base $copy"
rm -rf "$copy"
