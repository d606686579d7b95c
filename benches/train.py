"""Trains a model for a few steps with hft-surgery and with PyTorch in turn, full and half, and prints both.

usage: train.py DIR NAME MODEL SEQ BATCH RUNS STEPS

Both read the same rows of random tokens and train the same tensors, those of one plan. The speed of a machine
that others share changes from minute to minute: a step's time is that of the fastest step of all runs but each
run's first, and the ratio of the medians of each pair of neighbouring runs is printed beside it. Memory is the
largest resident set of the process, in which mapped files count. Losses are compared step by step.
"""
import json
import os
import random
import shutil
import statistics
import subprocess
import sys

US = "target/release/hft-surgery"


def run(command):
    """Its output and the peak of its resident memory in bytes."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = child.stdout.read(), child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"status {status}: {' '.join(command)}\n{err.decode()}")
    return json.loads(out), usage.ru_maxrss * 1024


def ours(model, rows, plan, out, batch):
    shutil.rmtree(out, ignore_errors=True)
    result, peak = run([US, "--quiet", "train", "--model", model, "--data", rows, "--plan", plan, "--out", out,
                        "--batch-size", str(batch), "--epochs", "1", "--no-shuffle", "--lr-scheduler", "constant",
                        "--learning-rate", "2e-5", "--no-sync", "--json"])
    with open(f"{out}/train_log.jsonl") as f:
        log = [json.loads(line) for line in f]
    shutil.rmtree(out)
    seconds = [line["tokens"] / line["tokens_per_second"] for line in log]
    part = result["rounds"][0]
    flops = part["flops_per_token"] * part["tokens"] + part["head_flops_per_target"] * part["targets"]
    flops /= part["steps"]
    return {"seconds": seconds[1:], "peak": peak, "losses": [line["loss"] for line in log], "flops": flops,
            "gemm": result["gemm_gflops"], "share": part["trainable_parameters"] / part["parameters"]}


def theirs(model, rows, plan, batch):
    result, peak = run([sys.executable, "benches/peers/peer_train.py", model, "--rows", rows, "--plan", plan,
                        "--batch", str(batch)])
    return {"seconds": result["seconds"][1:], "peak": peak, "losses": result["losses"]}


def fastest(runs):
    return min(second for run in runs for second in run["seconds"])


def median(runs, key):
    return statistics.median(r[key] for r in runs)


PLANS = [("full", ["--ratio", "1.0"]),
         ("half", ["--ratio", "0.5"]),
         ("half, embeddings and head frozen", ["--ratio", "0.5", "--embeddings", "freeze", "--lm-head", "freeze"])]


def main():
    directory, name, model, seq, batch, runs, steps = sys.argv[1:4] + [int(a) for a in sys.argv[4:8]]
    with open(f"{model}/config.json") as f:
        vocab = json.load(f)["vocab_size"]
    work = f"{directory}/train-bench"
    os.makedirs(work, exist_ok=True)
    rows = f"{work}/{name}.jsonl"
    draw = random.Random(1)
    with open(rows, "w") as f:
        for _ in range(steps * batch):
            f.write(json.dumps({"input_ids": [draw.randrange(vocab) for _ in range(seq)]}) + "\n")
    print(f"\n{name}: {batch} rows of {seq} tokens a step, {steps} steps, {runs} runs in turn\n")
    print("| trained | ours tok/s | PyTorch tok/s | speed | speed, median pair | ours peak | PyTorch peak | memory "
          "| GFLOP/s | of gemm | half / full measured | predicted | PyTorch | largest loss difference |")
    print("|---|" + "--:|" * 13)
    full = None
    for kind, options in PLANS:
        plan = f"{work}/{name}.json"
        subprocess.run([US, "--quiet", "plan", model, *options, "--seed", "0", "--out", plan], check=True,
                       stdout=subprocess.DEVNULL)
        mine, other = [], []
        for _ in range(runs):
            mine.append(ours(model, rows, plan, f"{work}/out", batch))
            other.append(theirs(model, rows, plan, batch))
        step, peer = fastest(mine), fastest(other)
        pairs = [statistics.median(o["seconds"]) / statistics.median(m["seconds"]) for m, o in zip(mine, other)]
        peak, peer_peak = median(mine, "peak"), median(other, "peak")
        flops, gemm = mine[0]["flops"], max(r["gemm"] for r in mine)
        gap = max(abs(a - b) for m, o in zip(mine, other) for a, b in zip(m["losses"], o["losses"]))
        full = full or (step, flops, peer)
        print(f"| {kind}: {mine[0]['share']:.0%} of parameters | {batch * seq / step:.0f} | {batch * seq / peer:.0f} "
              f"| {peer / step:.2f} x | {statistics.median(pairs):.2f} x | {peak / 1e9:.2f} GB "
              f"| {peer_peak / 1e9:.2f} GB | {peak / peer_peak:.2f} x | {flops / step / 1e9:.0f} "
              f"| {flops / step / 1e9 / gemm:.0%} | {step / full[0]:.2f} | {flops / full[1]:.2f} | {peer / full[2]:.2f} "
              f"| {gap:.1e} |", flush=True)


main()
