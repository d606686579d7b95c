#!/usr/bin/env bash
# The Python package as a user gets it: builds the wheel, installs it into a clean environment, checks and tests it there.
#
# usage: python/run_tests.sh [PYTEST ARGUMENT ...]
#
# HFT_WHEEL      a wheel that is built already
# HFT_VENV       where the environment lies (target/python by default); it is kept, so that the next run is fast
# HFT_WHEEL_ONLY any text: only what needs no torch, which takes gigabytes: the wheel, its tag, its types and its commands
# HFT_PACKAGES   a site-packages directory with some of the requirements, such as torch, which are then not installed again
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${HFT_VENV:-target/python}"
step() { printf '\n== %s\n' "$*"; "$@"; }

[ -x "$venv/bin/python" ] || step python3 -m venv "$venv"
bin="$(cd "$venv" && pwd)/bin"
if [ -n "${HFT_PACKAGES:-}" ]; then
    echo "$HFT_PACKAGES" >"$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"
fi
if [ -n "${HFT_WHEEL_ONLY:-}" ]; then
    step "$bin/pip" install -q $(grep -E '^(auditwheel|maturin|mypy|pytest|ruff)==' python/requirements.txt)
else
    step "$bin/pip" install -q -r python/requirements.txt
fi
# Packages beside the environment bring no programs into it.
[ -x "$bin/maturin" ] || step "$bin/pip" install -q --ignore-installed --no-deps "$(grep maturin python/requirements.txt)"

wheel="${HFT_WHEEL:-}"
if [ -z "$wheel" ]; then
    rm -f target/wheels/hft_surgery-*.whl
    # What `cargo build --release --locked` has compiled in this directory is not compiled again.
    step "$bin/maturin" build --release --out target/wheels
    wheel="$(ls target/wheels/hft_surgery-*.whl)"
fi
# The platform tag in the name of the wheel is the one that the symbols of its program allow.
tag="$(basename "${wheel%.whl}" | sed 's/.*-//')"
needs="$(step "$bin/python" -m auditwheel show "$wheel")"
printf '%s\n' "$needs"
if [[ "$tag" != manylinux_* || "$needs" != *"following platform tag: \"$tag\""* ]]; then
    printf 'error: %s: got the platform tag %s, expected manylinux and what auditwheel says\n' "$wheel" "$tag" >&2
    exit 1
fi
unset HFT_SURGERY_BINARY PYTHONPATH
step "$bin/pip" install -q --force-reinstall --no-deps "$wheel"
step "$bin/hft-surgery" --version

step "$bin/python" -m ruff check python
step "$bin/python" -m ruff format --check python
step "$bin/python" -m mypy -p hft_surgery

# A plan drawn by the installed package is the file of the installed program.
plans="$(mktemp -d)"
step "$bin/hft-surgery" plan fixtures/base --ratio 0.5 --seed 3 --out "$plans/program.json" >/dev/null
step "$bin/python" -c 'import sys, hft_surgery; hft_surgery.Plan.draw("fixtures/base", ratio=0.5, seed=3).save(sys.argv[1])' "$plans/module.json"
step cmp "$plans/program.json" "$plans/module.json"
rm -r "$plans"
if [ -n "${HFT_WHEEL_ONLY:-}" ]; then
    step "$bin/python" -m pytest -q -p no:cacheprovider python/tests/test_commands.py
    exit
fi

# The trainers whose rules `plan export` writes for: their code, not their dependencies.
trainers="$PWD/target/trainers"
if [ ! -d "$trainers" ]; then
    step "$bin/pip" download -q --no-deps --dest "$trainers" axolotl==0.19.0 ms-swift==4.6.0 llamafactory==0.9.5 torchtune==0.6.1
fi
HFT_TRAINER_WHEELS="$trainers" OMP_NUM_THREADS=1 step "$bin/python" -m pytest -q -p no:cacheprovider "$@"
