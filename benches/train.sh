#!/usr/bin/env bash
# Training steps, full and half, against PyTorch with the same rows and the same trainable tensors, in turn.
#
# usage: benches/train.sh DIR [SMOLLM2 [RUNS [STEPS]]]
#
# DIR holds, or gets, the `small` checkpoint (8 layers, hidden size 512, vocabulary 32000) and the runs; SMOLLM2 is a
# checkpoint of SmolLM2-135M. PYTHON names a Python with torch, transformers and safetensors [default: python3].
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(realpath -m "${1:?usage: benches/train.sh DIR [SMOLLM2 [RUNS [STEPS]]]}")
python=${PYTHON:-python3}
cargo build --release --quiet
[ -d "$dir/base" ] || "$python" benches/peers/make_pair.py "$dir" small

lscpu | sed -n 's/^Model name: */CPU: /p'
echo "threads: 2; $("$python" -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)')"
export HF_HUB_OFFLINE=1 RAYON_NUM_THREADS=2 OMP_NUM_THREADS=2
"$python" benches/train.py "$dir" small "$dir/base" 512 4 "${3:-3}" "${4:-6}"
[ -z "${2:-}" ] || "$python" benches/train.py "$dir" SmolLM2-135M "$(realpath "$2")" 256 4 "${3:-3}" "${4:-6}"
