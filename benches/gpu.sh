#!/usr/bin/env bash
# Everything that needs a GPU, in one call of less than ten minutes: each operation against the CPU, compute-sanitizer where it is
# installed, training of every family and in every way against the CPU, speed and memory of Qwen2.5 shapes full and half beside
# llmq's figures and PyTorch, half against full, the bandwidth of AdamW. Stops at the first wrong number, with status 1; a section
# without time is skipped, and the report names it. Fails when there is no GPU.
#
# usage: benches/gpu.sh [--results DIR] [--budget SECONDS] [--tiny] [options of benches/gpu.py]
#
# Needs no cargo where it runs: build with `cargo build --release` and `cargo test --release --no-run --test cuda`
# elsewhere and bring this tree with both files. HFT_BINARY and HFT_TESTS name them [default: the newest in
# target/release]; PYTHON names a Python [default: python3], with torch and transformers for the part beside PyTorch. Writes
# DIR/gpu.json and DIR/gpu.md [default: benches/results].
#
# --tiny runs the same code on tiny models, on the mock libraries that `cargo test --test cuda` builds where HFT_CUDA_LIBRARIES
# names no others; what the build does not have is listed there, and an error without --tiny.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
newest() { find "$@" -printf '%T@ %p\n' 2>/dev/null | sort -n | tail -1 | cut -d' ' -f2; }
budget=560 tiny=
for ((i = 1; i <= $#; i++)); do
    case ${!i} in
        --tiny) tiny=1 ;;
        --budget) next=$((i + 1)); budget=${!next} ;;
    esac
done
binary=${HFT_BINARY:-target/release/hft-surgery}
tests=${HFT_TESTS:-$(newest target/release/deps -maxdepth 1 -name 'cuda-*' -executable -type f)}
if [ -n "$tiny" ]; then
    binary=${HFT_BINARY:-target/debug/hft-surgery}
    tests=${HFT_TESTS:-$(newest target/debug/deps -maxdepth 1 -name 'cuda-*' -executable -type f)}
    export HFT_CUDA_LIBRARIES=${HFT_CUDA_LIBRARIES:-$PWD/$(newest target/tmp -maxdepth 1 -name 'mock-cuda-*' -type d)}
    export MOCK_SCHEDULE=${MOCK_SCHEDULE:-1}
else
    export HFT_TEST_GPU=1
fi
[ -x "$binary" ] || { echo "error: no $binary; build it with cargo build --release" >&2; exit 1; }
[ -n "$tests" ] || { echo "error: no tests; build them with cargo test --release --no-run --test cuda" >&2; exit 1; }
section() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

section GPU
"$binary" doctor || { echo "error: no GPU to measure" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
section operations against the CPU
# Faults are planted in the mock, which needs a compiler.
timeout 200 "$tests" --nocapture --test-threads 1 --skip planted_faults | tee "$work/operations"
section compute-sanitizer
sanitizer="not installed"
if command -v compute-sanitizer >/dev/null; then
    # A large bandwidth is no work for it.
    status=0
    timeout 90 compute-sanitizer --error-exitcode 1 "$tests" --test-threads 1 --skip planted_faults --skip bandwidth \
        --skip large_copies || status=$?
    case $status in
        0) sanitizer=clean ;;
        124) sanitizer="clean until its time was used up" ;;
        *) echo "error: compute-sanitizer found a fault" >&2; exit 1 ;;
    esac
fi
"$python" benches/gpu.py "$binary" --operations "$work/operations" --sanitizer "$sanitizer" --work "$work" \
    --elapsed "$SECONDS" --budget "$budget" "$@"
section done
