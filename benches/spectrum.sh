#!/usr/bin/env bash
# `diff --spectrum` of a pair against torch.linalg.svdvals on the same matrices with the same threads, and what both would
# take for a 7B pair by floating-point operations.
#
# usage: benches/spectrum.sh BASE TUNED [ONLY] [RUNS]
#
# ONLY is a part of the names of the tensors that are measured [default: all]. PYTHON names a Python with torch and
# safetensors [default: python3], PEER the types it computes in [default: "f32 f64"], US the program.
set -euo pipefail
cd "$(dirname "$0")/.."
base=$(realpath "${1:?usage: benches/spectrum.sh BASE TUNED [ONLY] [RUNS]}") tuned=$(realpath "${2:?TUNED}")
only=${3:-} runs=${4:-1}
python=${PYTHON:-python3}
if [ -z "${US:-}" ]; then cargo build --release --quiet; fi
us=${US:-target/release/hft-surgery}
threads=$(nproc)
export WARM=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
commands=("diff --spectrum=$us --quiet diff $base $tuned --spectrum --json --only '*$only*' >$work/us.json")
for type in ${PEER:-f32 f64}; do
    commands+=("svdvals $type=$python benches/peers/peer_spectrum.py $base $tuned $type $threads '$only' >$work/$type.json")
done
lscpu | sed -n 's/^Model name: */CPU: /p'
echo "threads: $threads"
echo
"$python" benches/turns.py "$runs" 0 "${commands[@]}" | tee "$work/times.txt"
echo
"$python" - "$work" ${PEER:-f32 f64} <<'END'
"""The largest difference in effective rank, and times by floating-point operations for Llama-2-7B."""
import json
import os
import sys

work, types = sys.argv[1], sys.argv[2:]
rows = [r for r in json.load(open(os.path.join(work, "us.json")))["tensors"] if r["effective_rank"] is not None]
for kind in types:
    peer = json.load(open(os.path.join(work, f"{kind}.json")))
    worst = max(abs(r["effective_rank"] / peer[r["name"]] - 1) for r in rows if r["name"] in peer)
    print(f"effective rank: largest relative difference from svdvals {kind}: {worst:.1e}")


def gram(m, n):  # The lower half of the Gram matrix, and its tridiagonal form.
    return m * n * n + 4 / 3 * n**3


def bidiagonal(m, n):
    return 4 * m * n * n - 4 / 3 * n**3


here = [(max(r["rows"], r["columns"]), min(r["rows"], r["columns"])) for r in rows]
llama = 32 * ([(4096, 4096)] * 4 + [(11008, 4096)] * 3) + [(32000, 4096)] * 2
for line in open(os.path.join(work, "times.txt")):
    name = line[:28].strip()
    if name.startswith(("diff", "svdvals")):
        seconds, flop = float(line[28:].split()[0]), gram if name.startswith("diff") else bidiagonal
        ratio = sum(flop(*s) for s in llama) / sum(flop(*s) for s in here)
        print(f"{name}: 7B by floating-point operations: {seconds * ratio / 60:.1f} minutes")
END
