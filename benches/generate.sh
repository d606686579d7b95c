#!/usr/bin/env bash
# Tokens per second of `generate`, with the share of the memory bandwidth that reading all weights for each token takes, against
# transformers and, where it is installed, llama-cpp-python with the same weights.
#
# usage: benches/generate.sh CKPT [TOKENS [RUNS]]
#
# CKPT is a checkpoint in bf16 with a tokenizer, of which each token reads every weight once: TOKENS new ones [default: 64] after a
# short prompt, the best of RUNS runs [default: 3]. The bandwidth of the machine is what `read_map` reads of the same file, in the
# same number of threads, from pages that are mapped and were touched before. PYTHON names a Python with torch and transformers
# [default: python3]; THREADS the threads [default: 2].
set -euo pipefail
cd "$(dirname "$0")/.."
model=$(realpath "${1:?usage: benches/generate.sh CKPT [TOKENS [RUNS]]}")
tokens=${2:-64} runs=${3:-3} python=${PYTHON:-python3} threads=${THREADS:-2}
cargo build --release --locked --quiet
cargo build --release --locked --quiet --example read_map
target=${CARGO_TARGET_DIR:-target}/release

lscpu | sed -n 's/^Model name: */CPU: /p'
export RAYON_NUM_THREADS=$threads OMP_NUM_THREADS=$threads HF_HUB_OFFLINE=1
exec "$python" benches/generate.py "$model" "$tokens" "$runs" "$target"
