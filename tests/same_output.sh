#!/usr/bin/env bash
# Do two builds write the same bytes? For changes that must not change any.
# usage: tests/same_output.sh BEFORE AFTER        (two hft-surgery binaries)
#
# Runs every command on the fixtures with each binary, then compares the SHA-256 of every file written, and stdout,
# stderr and exit code of every command. Prints what differs; exit code 0: nothing.
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,3p' "$0" >&2; exit 2; }
before=$(realpath "$1") after=$(realpath "$2") root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Each command runs where the fixtures are a folder, so that no path of the machine reaches an output.
one() { # NAME ARGUMENTS…
    local name=$1 code=0
    shift
    "$bin" "$@" >"said/$name.out" 2>"said/$name.err" || code=$?
    echo "exit code $code" >>"said/$name.out"
    [ "$code" -lt 2 ] || echo "$name: exit code $code: $(head -n 1 "said/$name.err")"
    # Times, speeds and memory differ from run to run.
    sed -i -E 's/[0-9.,]+ (tokens\/s|GB\/s|s|seconds)\b/N \1/g' "said/$name.err"
    case $name in
    train-*)
        sed -i -E '/exit code/! s/ *[0-9.,]+/ N/g; s/ +/ /g' "said/$name.out"
        sed -i -E 's/[0-9.,]+ MB/N MB/g' "said/$name.err"
        ;;
    esac
}

commands() {
    local pair="--base fixtures/base --tuned fixtures/tuned"
    one inspect inspect fixtures/tuned --json
    one inspect-table inspect fixtures/tuned --tensors
    one verify verify fixtures/tuned --write-manifest manifest.json
    for strategy in category layer model; do
        for balance in count params; do
            one "plan-$strategy-$balance" plan fixtures/tuned --strategy $strategy --balance $balance --seed 3 \
                --out "plan-$strategy-$balance.json"
        done
    done
    one plan-rows plan fixtures/tuned --granularity row --out plan-row.json --json
    one plan-complement plan complement plan-layer-count.json --out complement.json
    one plan-union plan union plan-layer-count.json plan-model-count.json --out union.json
    for granularity in tensor row element; do
        one "reset-$granularity" reset $pair --out "reset-$granularity" --granularity $granularity --seed 7
    done
    one reset-magnitude reset $pair --out reset-magnitude --granularity element --selector top-magnitude
    one reset-row-magnitude reset $pair --out reset-row-magnitude --granularity row --selector top-magnitude
    one reset-complement reset $pair --out reset-complement --complement-of plan-layer-count.json
    one reset-plan reset $pair --out reset-plan --plan plan-model-params.json --hash
    one reset-json reset $pair --out never --dry-run --json
    for recipe in fixtures/merge/recipes/*.yml; do
        one "merge-$(basename "$recipe" .yml)" merge "$recipe" --out "merge-$(basename "$recipe" .yml)" --out-shard-size 4k
        one "explain-$(basename "$recipe" .yml)" merge "$recipe" --explain
    done
    local a=fixtures/merge/a b=fixtures/merge/b
    for method in dare_linear dare_ties della della_linear; do
        one "merge-$method" merge --method $method --base fixtures/merge/base --model $a:weight=0.5,density=0.5 \
            --model $b:weight=0.5,density=0.5 --seed 5 --out "merge-$method"
    done
    one plan-merge plan fixtures/merge/base --out plan-merge.json
    one merge-mask merge --method mask --base fixtures/merge/base --model $a:mask=plan-merge.json --out merge-mask
    one merge-elements merge --method mask --base fixtures/merge/base --out merge-elements \
        --model $a:select=top-magnitude,density=0.3 --model $b:select=bernoulli,density=0.4
    one merge-bf16 merge --method ties --base fixtures/merge/base --model $a:weight=0.6,density=0.5 \
        --model $b:weight=0.4,density=0.5 --dtype bfloat16 --out merge-bf16
    one lora-extract lora extract fixtures/merge/base $a --rank 4 --out adapter
    one lora-merge merge --lora adapter --base fixtures/merge/base --out merge-lora
    one patch-create patch create fixtures/base fixtures/tuned --out tuned.patch
    one patch-inspect patch inspect tuned.patch --json
    one patch-apply patch apply fixtures/base tuned.patch --out patched
    one diff diff fixtures/base fixtures/tuned --json --html page.html --svg map.svg
    one diff-table diff fixtures/base fixtures/tuned
    one diff-csv diff fixtures/base fixtures/tuned --csv
    one diff-three-way diff --base fixtures/merge/base $a $b --json
    one diff-plan diff fixtures/base reset-tensor --plan plan-category-count.json
    for family in llama2 llama3 mistral qwen2 qwen3; do
        mkdir -p "models/$family"
        cp fixtures/llama/$family/config.json fixtures/llama/$family/model.safetensors "models/$family"
        one "train-$family" train --model models/$family --data rows.jsonl --out "trained-$family" --max-steps 3 \
            --batch-size 2 --device cpu --rounds 2 --eval-data rows.jsonl
    done
    one train-elements train --model models/llama3 --data rows.jsonl --out trained-elements --max-steps 3 \
        --batch-size 2 --device cpu --granularity element --recompute none --gradient-accumulation-steps 2 --packing
    one eval eval --model trained-llama3 --data rows.jsonl --json --device cpu
}

for side in before after; do
    bin=${!side}
    mkdir -p "$work/$side/said"
    cd "$work/$side"
    cp -r "$root/fixtures" fixtures
    for i in $(seq 20); do
        echo "{\"input_ids\": [$(seq -s , $((i % 7 + 1)) $((i % 7 + 9 + i % 5)))]}"
    done >rows.jsonl
    commands
    rm -rf fixtures models
    # Times of the clock and speeds, which no two runs share.
    find . -name 'train_log.jsonl' -o -name metrics.json | xargs -r sed -i -E \
        's/"(tokens_per_second|seconds|[a-z_]*_seconds)": ?[0-9.e+-]+/"\1":N/g'
    find . -type f | sort | xargs sha256sum >"$work/$side.sums"
done
echo "$(wc -l <"$work/before.sums") files and outputs of $(ls "$work/before/said" | wc -l | awk '{print $1 / 2}') commands"
cd "$work"
diff -u before.sums after.sums | grep '^[+-]' | grep -v '^+++\|^---' || true
for said in before/said/*; do
    diff -u "$said" "after/said/$(basename "$said")" || true
done
cmp -s before.sums after.sums
