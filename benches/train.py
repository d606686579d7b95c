"""Trains a model for a few steps with hft-surgery and with PyTorch in turn, full and half, and prints both.

usage: train.py DIR NAME MODEL SEQ BATCH RUNS STEPS

Both read the same rows of random tokens and train the same tensors, those of one plan. A step's time is the
median over the steps but the first, then over the runs; memory is the largest resident set of the process, in
which mapped files count. Losses are compared step by step.
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
    step = statistics.median(line["tokens"] / line["tokens_per_second"] for line in log[1:])
    part = result["rounds"][0]
    flops = part["flops_per_token"] * part["tokens"] + part["head_flops_per_target"] * part["targets"]
    flops /= part["steps"]
    return {"step": step, "peak": peak, "losses": [line["loss"] for line in log], "flops": flops,
            "gemm": result["gemm_gflops"], "share": part["trainable_parameters"] / part["parameters"]}


def theirs(model, rows, plan, batch):
    result, peak = run([sys.executable, "benches/peers/peer_train.py", model, "--rows", rows, "--plan", plan,
                        "--batch", str(batch)])
    return {"step": result["step_s"], "peak": peak, "losses": result["losses"]}


def median(runs, key):
    return statistics.median(r[key] for r in runs)


def main():
    directory, name, model, seq, batch, runs, steps = sys.argv[1:3] + [sys.argv[3]] + [int(a) for a in sys.argv[4:8]]
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
    print("| trained | ours tok/s | PyTorch tok/s | speed | ours peak | PyTorch peak | memory | GFLOP/s | of gemm | largest loss difference |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    full = None
    for kind, ratio in [("full", "1.0"), ("half", "0.5")]:
        plan = f"{work}/{name}-{kind}.json"
        subprocess.run([US, "--quiet", "plan", model, "--ratio", ratio, "--seed", "0", "--out", plan], check=True,
                       stdout=subprocess.DEVNULL)
        mine, other = [], []
        for _ in range(runs):
            mine.append(ours(model, rows, plan, f"{work}/out", batch))
            other.append(theirs(model, rows, plan, batch))
        step, peer = median(mine, "step"), median(other, "step")
        peak, peer_peak = median(mine, "peak"), median(other, "peak")
        flops, gemm = mine[0]["flops"], median(mine, "gemm")
        gap = max(abs(a - b) for m, o in zip(mine, other) for a, b in zip(m["losses"], o["losses"]))
        tokens = batch * seq
        print(f"| {kind}, {mine[0]['share']:.0%} of parameters | {tokens / step:.1f} | {tokens / peer:.1f} | {peer / step:.2f} x "
              f"| {peak / 1e9:.2f} GB | {peer_peak / 1e9:.2f} GB | {peak / peer_peak:.2f} x "
              f"| {flops / step / 1e9:.0f} | {flops / step / 1e9 / gemm:.0%} | {gap:.1e} |", flush=True)
        if full is None:
            full = (step, flops, peer)
    print(f"\nhalf step / full step: {step / full[0]:.2f} measured, {flops / full[1]:.2f} predicted from FLOP; "
          f"PyTorch {peer / full[2]:.2f}")


main()
