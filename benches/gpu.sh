#!/usr/bin/env bash
# Everything that needs a card: each operation against the CPU, training in f32 and bf16 against the CPU, compute-
# sanitizer where it is installed, and throughput full and half. Fails when there is no card.
#
# usage: benches/gpu.sh MODEL [RESULTS [STEPS [SEQ [BATCH]]]]
#
# Needs no cargo where it runs: build with `cargo build --release` and `cargo test --release --no-run --test cuda`
# elsewhere and bring this tree with both files. HFT_BINARY and HFT_TESTS name them [default: the newest in
# target/release]. MODEL is a checkpoint to train. Writes RESULTS/gpu.json and RESULTS/gpu.md [default:
# benches/results].
set -euo pipefail
cd "$(dirname "$0")/.."
model=${1:?usage: benches/gpu.sh MODEL [RESULTS [STEPS [SEQ [BATCH]]]]}
results=${2:-benches/results}
binary=${HFT_BINARY:-target/release/hft-surgery}
tests=${HFT_TESTS:-$(find target/release/deps -maxdepth 1 -name 'cuda-*' -executable -type f -printf '%T@ %p\n' 2>/dev/null | sort -n | tail -1 | cut -d' ' -f2)}
[ -x "$binary" ] || { echo "error: no $binary; build it with cargo build --release" >&2; exit 1; }
[ -n "$tests" ] || { echo "error: no tests; build them with cargo test --release --no-run --test cuda" >&2; exit 1; }

"$binary" doctor || { echo "error: no card to measure" >&2; exit 1; }
operations=(operations_agree masks_have a_masked_merge a_head)
HFT_TEST_GPU=1 "$tests" --nocapture --test-threads 1 "${operations[@]}" | tee /tmp/hft-gpu-operations.$$
if command -v compute-sanitizer >/dev/null; then
    HFT_TEST_GPU=1 compute-sanitizer --error-exitcode 1 "$tests" --test-threads 1 "${operations[@]}"
    sanitizer=clean
else
    sanitizer="not installed"
fi
python3 benches/gpu.py "$binary" "$model" "$results" "/tmp/hft-gpu-operations.$$" "$sanitizer" "${3:-20}" "${4:-2048}" "${5:-8}"
rm -f "/tmp/hft-gpu-operations.$$"
