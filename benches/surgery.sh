#!/usr/bin/env bash
# Half-reset of a 2.2 GB pair: against copying the same bytes, and against the script people write today.
#
# usage: benches/surgery.sh DIR [RUNS]
#
# DIR holds, or gets, the pair DIR/base and DIR/ft (TinyLlama-1.1B's shape, bf16, 5 shards) and the results of
# runs. PYTHON names a Python with torch and safetensors [default: python3].
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(realpath -m "${1:?usage: benches/surgery.sh DIR [RUNS]}")
runs=${2:-7}
python=${PYTHON:-python3}
cargo build --release --quiet
us=target/release/hft-surgery
[ -d "$dir/ft" ] || "$python" benches/peers/make_pair.py "$dir" 1b
base=$dir/base tuned=$dir/ft
export BENCH_DIR=$dir
bytes=$(cat "$tuned"/*.safetensors | wc -c)
reset="$us --quiet reset --base $base --tuned $tuned --out {out}"
turns() { "$python" benches/turns.py "$runs" "$@"; }

lscpu | sed -n 's/^Model name: */CPU: /p'
echo "threads: $(nproc); pair: $bytes bytes a side, page cache warm"
echo
echo "Left to the page cache (bar: reset <= 1.0 x cp -r; peer_reset.py >= 3 x reset)"
turns "$bytes" "cp -r=cp -r $tuned {out}" "reset --no-sync=$reset --no-sync" "peer_reset.py=$python benches/peers/peer_reset.py $base $tuned {out}"
echo
echo "On the disk (bar: reset <= 1.1 x cp -r and fsync)"
turns "$bytes" "cp -r, fsync=cp -r $tuned {out} && sync {out}/*" "reset=$reset"
echo
echo "Below the tensor: every element of every matrix by its own coin, or by its rank"
turns "$bytes" "cp -r=cp -r $tuned {out}" "element, bernoulli=$reset --no-sync --granularity element" "element, top-magnitude=$reset --no-sync --granularity element --selector top-magnitude" "row, bernoulli=$reset --no-sync --granularity row"
echo
echo "Reading (bar: inspect < 0.030 s)"
turns 0 "inspect=$us inspect $tuned"
"$us" verify "$tuned" --verbose 2>&1 >/dev/null
