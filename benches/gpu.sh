#!/usr/bin/env bash
# Everything that needs a GPU: each operation against the CPU, compute-sanitizer where it is installed, training in
# f32 and bf16 against the CPU, throughput and memory full and half beside PyTorch, half against full at several
# sizes, and the bandwidth of AdamW. Fails when there is no GPU.
#
# usage: benches/gpu.sh [--model CKPT] [--results DIR] [options of benches/gpu.py]
#
# Needs no cargo where it runs: build with `cargo build --release` and `cargo test --release --no-run --test cuda`
# elsewhere and bring this tree with both files. HFT_BINARY and HFT_TESTS name them [default: the newest in
# target/release]; PYTHON names a Python with torch, transformers and safetensors [default: python3]. CKPT is what is
# trained [default: random weights in the shape of TinyLlama-1.1B]. Writes DIR/gpu.json and DIR/gpu.md [default:
# benches/results].
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
binary=${HFT_BINARY:-target/release/hft-surgery}
tests=${HFT_TESTS:-$(find target/release/deps -maxdepth 1 -name 'cuda-*' -executable -type f -printf '%T@ %p\n' 2>/dev/null | sort -n | tail -1 | cut -d' ' -f2)}
[ -x "$binary" ] || { echo "error: no $binary; build it with cargo build --release" >&2; exit 1; }
[ -n "$tests" ] || { echo "error: no tests; build them with cargo test --release --no-run --test cuda" >&2; exit 1; }
section() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

section GPU
"$binary" doctor || { echo "error: no GPU to measure" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
operations=(operations_agree masks_have a_masked_merge a_head a_graph)
section operations against the CPU
HFT_TEST_GPU=1 "$tests" --nocapture --test-threads 1 "${operations[@]}" bandwidth_of | tee "$work/operations"
section compute-sanitizer
if command -v compute-sanitizer >/dev/null; then
    HFT_TEST_GPU=1 timeout 150 compute-sanitizer --error-exitcode 1 "$tests" --test-threads 1 "${operations[@]}"
    sanitizer=clean
else
    sanitizer="not installed"
fi
section training
"$python" benches/gpu.py "$binary" --operations "$work/operations" --sanitizer "$sanitizer" --work "$work" "$@"
section done
