"""Loss curves and peak memory of ways to train in less memory, beside AdamW in f32, over several seeds.

usage: optimizers.py DIR MODEL ROWS HELD_OUT [--steps 200] [--seeds 0,1,2] [--batch 2] [--max-length 128]

Half fine-tuning of MODEL on ROWS with each way and each seed, one run after another; a seed decides the tensors that are
trained, the order of rows and the rounding. The loss on HELD_OUT is measured four times. A run that DIR holds already is not
repeated. Prints, in Markdown, the mean over seeds with its standard deviation, and of each way the largest difference of one
seed's loss from the same seed's loss with AdamW in f32, next to the spread of AdamW in f32 over seeds.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

WAYS = {
    "adamw": [],
    "adamw8bit": ["--optimizer", "adamw8bit"],
    "adamw8bit, no master": ["--optimizer", "adamw8bit", "--master", "none"],
    "adamw8bit, no master, bf16 gradients": [
        "--optimizer", "adamw8bit", "--master", "none", "--gradient-dtype", "bfloat16"],
}
BINARY = os.environ.get("HFT_BINARY", "target/release/hft-surgery")


def options():
    a = argparse.ArgumentParser()
    for name in ("dir", "model", "rows", "held_out"):
        a.add_argument(name)
    a.add_argument("--steps", type=int, default=200)
    a.add_argument("--seeds", default="0,1,2")
    a.add_argument("--batch", type=int, default=2)
    a.add_argument("--max-length", type=int, default=128)
    a.add_argument("--ways", default=";".join(WAYS), help="names between semicolons")
    return a.parse_args()


def run(o, way, seed):
    """The log of a run, and its peak resident memory in bytes."""
    name = way.replace(", ", "-").replace(" ", "-") + f"-{seed}"
    out, kept = f"{o.dir}/{name}", f"{o.dir}/{name}.json"
    if not os.path.exists(kept):
        command = [BINARY, "--quiet", "train", "--model", o.model, "--data", o.rows, "--eval-data", o.held_out,
                   "--eval-steps", str(o.steps // 4), "--ratio", "0.5", "--learning-rate", "2e-5",
                   "--max-steps", str(o.steps), "--batch-size", str(o.batch), "--max-length", str(o.max_length),
                   "--seed", str(seed), "--no-sync", "--force", "--out", out, *WAYS[way]]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f"status {status}: {' '.join(command)}")
        with open(f"{out}/train_log.jsonl", encoding="utf-8") as file:
            log = [json.loads(line) for line in file]
        with open(kept, "w", encoding="utf-8") as file:
            json.dump({"log": log, "peak": usage.ru_maxrss * 1024}, file)
        subprocess.run(["rm", "-r", out], check=True)
    with open(kept, encoding="utf-8") as file:
        kept = json.load(file)
    return kept["log"], kept["peak"]


def points(log):
    """What is compared of a curve: the mean loss of each quarter of the steps, and the losses on held-out rows."""
    size = len(log) // 4
    quarters = [statistics.fmean(line["loss"] for line in log[i * size:(i + 1) * size]) for i in range(4)]
    return quarters, [line["eval_loss"] for line in log if line.get("eval_loss") is not None]


def main():
    o = options()
    os.makedirs(o.dir, exist_ok=True)
    seeds = [int(seed) for seed in o.seeds.split(",")]
    results = {way: [run(o, way, seed) for seed in seeds] for way in o.ways.split(";")}
    first = next(iter(results))
    curves = {way: [points(log) for log, _ in runs] for way, runs in results.items()}
    print(f"{o.steps} steps of {o.batch} rows, seeds {o.seeds}\n")
    print("| way | peak, GB | training loss by quarter | held-out loss by quarter "
          f"| furthest from {first}, training | held-out |")
    print("|---|--:|---|---|--:|--:|")
    for way, of_seeds in curves.items():
        cells = []
        for kind in (0, 1):
            by_point = list(zip(*(curve[kind] for curve in of_seeds)))
            cells.append(", ".join(f"{statistics.fmean(x):.4f} ± {statistics.stdev(x) if len(x) > 1 else 0:.4f}"
                                   for x in by_point))
        far = [max(abs(a - b) for mine, theirs in zip(of_seeds, curves[first])
                   for a, b in zip(mine[kind], theirs[kind])) for kind in (0, 1)]
        peak = max(peak for _, peak in results[way]) / 1e9
        print(f"| {way} | {peak:.3f} | {cells[0]} | {cells[1]} | {far[0]:.4f} | {far[1]:.4f} |")
    spread = [max(max(x) - min(x) for x in zip(*(curve[kind] for curve in curves[first]))) for kind in (0, 1)]
    print(f"\nThe spread of {first} over seeds, largest less smallest: training {spread[0]:.4f}, held-out {spread[1]:.4f}.")


main()
