#!/usr/bin/env bash
# A patch between two checkpoints: size, speed both ways and memory, beside zstd of the weights as they are.
#
# usage: benches/patch.sh BASE TUNED [RUNS]
#
# BASE and TUNED are checkpoint directories. BENCH_DIR names a directory with room for twice TUNED and the
# patch [default: a temporary one]. Needs the zstd command; PYTHON names a Python [default: python3].
set -euo pipefail
cd "$(dirname "$0")/.."
base=$(realpath "${1:?usage: benches/patch.sh BASE TUNED [RUNS]}")
tuned=$(realpath "${2:?usage: benches/patch.sh BASE TUNED [RUNS]}")
runs=${3:-5}
python=${PYTHON:-python3}
command -v zstd >/dev/null || { echo "needs the zstd command" >&2; exit 1; }
cargo build --release --quiet
us=target/release/hft-surgery
work=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/tmp}}/patch.XXXXXX")
trap 'rm -rf "$work"' EXIT
export BENCH_DIR=$work
threads=$(nproc)
turns() { "$python" benches/turns.py "$runs" "$@"; }
percent() { awk "BEGIN { printf \"%.1f %%\", 100 * $1 / $2 }"; }

weights=$work/weights
cat "$tuned"/*.safetensors > "$weights"
bytes=$(stat -c %s "$weights")
lscpu | sed -n 's/^Model name: */CPU: /p'
echo "threads: $threads; $bytes bytes of weights, page cache warm"
echo

zstd -q -3 "-T$threads" "$weights" -o "$weights.zst"
patch=$work/patch
"$us" --quiet patch create "$base" "$tuned" --out "$patch"
"$us" --quiet patch apply "$base" "$patch" --out "$work/out"
(cd "$work/out" && find . -type f) | while read -r file; do cmp "$work/out/$file" "$tuned/$file"; done
echo
echo "result: byte-identical, $(find "$work/out" -type f | wc -l) files"
echo "patch:   $(stat -c %s "$patch") bytes, $(percent "$(stat -c %s "$patch")" "$bytes")"
echo "zstd -3: $(stat -c %s "$weights.zst") bytes, $(percent "$(stat -c %s "$weights.zst")" "$bytes")"
rm -rf "$work/out"
echo
echo "To the patch (bar: create <= 1.0 x zstd -3)"
create="$us --quiet patch create $base $tuned --out {out} --no-sync"
turns "$bytes" "zstd -3 -T$threads=zstd -q -3 -T$threads $weights -o {out}" "patch create=$create" \
  "patch create --level 1=$create --level 1" "patch create --level 9=$create --level 9"
echo
echo "And back (zstd checks nothing but its own sum)"
turns "$bytes" "zstd -d=zstd -q -d $weights.zst -o {out}" \
  "patch apply=$us --quiet patch apply $base $patch --out {out} --no-sync" "patch inspect=$us patch inspect $patch"
