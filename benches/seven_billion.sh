#!/usr/bin/env bash
# Half fine-tuning of a model of the shape of Llama-2-7B on the CPU: peak memory and seconds per step.
#
# usage: benches/seven_billion.sh DIR [LENGTH [BATCH [STEPS]]]
#
# DIR holds, or gets, a random checkpoint in bf16 (13.5 GB) and needs 35 GB more while the run goes on. A step takes BATCH rows
# [default: 1] of LENGTH random token ids [default: 512]; STEPS steps are taken [default: 3]. SHAPE=tiny makes a small model to
# try this script with, LAYERS another number of layers. OFFLOAD is the value of --offload [default: disk; empty: without the
# option]. LIMIT is a limit of memory in bytes, for which the user must be allowed to make a memory control group.
# TRAIN has more options of train, HFT_BINARY a binary that is built already, PYTHON a Python with numpy [default: python3].
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(realpath -m "${1:?usage: benches/seven_billion.sh DIR [LENGTH [BATCH [STEPS]]]}")
length=${2:-512} batch=${3:-1} steps=${4:-3} python=${PYTHON:-python3}
[ -n "${HFT_BINARY:-}" ] || cargo build --release --locked --quiet
"$python" benches/peers/make_llama.py "$dir" "${SHAPE:-7b}" ${LAYERS:+--layers "$LAYERS"} --length "$length" --rows $((steps * batch))

lscpu | sed -n 's/^Model name: */CPU: /p'
echo "threads: $(nproc); $(sed -n 's/^MemTotal: *//p' /proc/meminfo) of memory; $batch rows of $length tokens a step"
export HFT_BINARY=${HFT_BINARY:-target/release/hft-surgery} OFFLOAD=${OFFLOAD-disk} LIMIT=${LIMIT:-}
exec "$python" benches/seven_billion.py "$dir" "$length" "$batch" "$steps" ${TRAIN:-}
