"""The part of gpu.sh that trains: loss curves on the card against the CPU, then throughput full and half.

usage: gpu.py BINARY MODEL RESULTS OPERATIONS SANITIZER STEPS SEQ BATCH

Curves: STEPS steps of 2 rows of 64 tokens; f32 on the card must stay within 1e-4 of the CPU, bf16 within 2e-2.
Throughput: rows of SEQ tokens, BATCH a step, in bf16; a step's time is the median over the steps but the first.
"""
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile


def train(binary, model, rows, out, *more):
    command = [binary, "--quiet", "train", "--model", model, "--data", rows, "--out", out, "--epochs", "1", "--no-shuffle",
               "--lr-scheduler", "constant", "--learning-rate", "2e-5", "--no-sync", "--json", *more]
    result = subprocess.run(command, capture_output=True, check=False)
    if result.returncode != 0:
        sys.exit(f"status {result.returncode}: {' '.join(command)}\n{result.stderr.decode()}")
    with open(f"{out}/train_log.jsonl", encoding="utf-8") as f:
        return json.loads(result.stdout), [json.loads(line) for line in f]


def write_rows(path, count, length, vocab):
    draw = random.Random(1)
    with open(path, "w", encoding="utf-8") as f:
        for _ in range(count):
            f.write(json.dumps({"input_ids": [draw.randrange(vocab) for _ in range(length)]}) + "\n")


def curves(binary, model, work, steps, vocab):
    rows = f"{work}/short.jsonl"
    write_rows(rows, 2 * steps, 64, vocab)
    losses = {}
    for name, more in [("cpu", ["cpu"]), ("f32", ["cuda", "--compute-dtype", "float32"]), ("bf16", ["cuda"])]:
        _, log = train(binary, model, rows, f"{work}/{name}", "--batch-size", "2", "--ratio", "1.0", "--device", *more)
        losses[name] = [line["loss"] for line in log]
    gap = {name: max(abs(a - b) / a for a, b in zip(losses["cpu"], losses[name])) for name in ["f32", "bf16"]}
    return losses, gap


def throughput(binary, model, work, steps, seq, batch, vocab):
    rows = f"{work}/long.jsonl"
    write_rows(rows, steps * batch, seq, vocab)
    found = {}
    for name, ratio in [("full", "1.0"), ("half", "0.5")]:
        result, log = train(binary, model, rows, f"{work}/{name}", "--batch-size", str(batch), "--max-length", str(seq),
                            "--ratio", ratio, "--device", "cuda")
        part = result["rounds"][0]
        step = statistics.median(line["tokens"] / line["tokens_per_second"] for line in log[1:])
        flops = part["flops_per_token"] * part["tokens"] + part["head_flops_per_target"] * part["targets"]
        gflops = flops / part["steps"] / step / 1e9
        found[name] = {"tokens_per_second": batch * seq / step, "step_seconds": step, "gflops": gflops,
                       "of_gemm": gflops / result["gemm_gflops"], "flops_per_step": flops / part["steps"]}
    return found


def main():
    binary, model, results, operations, sanitizer = sys.argv[1:6]
    steps, seq, batch = (int(a) for a in sys.argv[6:9])
    with open(f"{model}/config.json", encoding="utf-8") as f:
        vocab = json.load(f)["vocab_size"]
    doctor = json.loads(subprocess.run([binary, "doctor", "--json"], capture_output=True, check=True).stdout)
    with open(operations, encoding="utf-8") as f:
        line = re.compile(r"(\w+) +(F32|Bf16) error (\S+) \(at most (\S+)\)")
        errors = [dict(zip(["operation", "type", "error", "bound"], found)) for found in line.findall(f.read())]
    if not errors:
        sys.exit("no operation was tested")
    with tempfile.TemporaryDirectory() as work:
        losses, gap = curves(binary, model, work, steps, vocab)
        speed = throughput(binary, model, work, steps, seq, batch, vocab)
    card = doctor["cards"][0]
    found = {"card": card, "libraries": doctor["libraries"], "sanitizer": sanitizer, "operations": errors, "losses": losses,
             "gap": gap, "shape": {"seq": seq, "batch": batch, "steps": steps}, "throughput": speed}
    os.makedirs(results, exist_ok=True)
    with open(f"{results}/gpu.json", "w", encoding="utf-8") as f:
        json.dump(found, f, indent=1)
    full, half = speed["full"], speed["half"]
    ratio, predicted = half["step_seconds"] / full["step_seconds"], half["flops_per_step"] / full["flops_per_step"]
    lines = [f"# {card['name']}, compute capability {card['compute_capability']}", "",
             f"compute-sanitizer: {sanitizer}. {steps} steps: f32 within {gap['f32']:.1e} of the CPU, bf16 within {gap['bf16']:.1e}.",
             "", "| operation | type | error | at most |", "|---|---|---|---|"]
    lines += [f"| {e['operation']} | {e['type']} | {e['error']} | {e['bound']} |" for e in errors]
    lines += ["", f"bf16, {batch} rows of {seq} tokens a step:", "", "| trained | tokens/s | GFLOP/s | of gemm |", "|---|---|---|---|"]
    lines += [f"| {name} | {s['tokens_per_second']:.0f} | {s['gflops']:.0f} | {s['of_gemm']:.0%} |" for name, s in speed.items()]
    lines += ["", f"half step / full step: {ratio:.2f} measured, {predicted:.2f} predicted from FLOP"]
    text = "\n".join(lines) + "\n"
    with open(f"{results}/gpu.md", "w", encoding="utf-8") as f:
        f.write(text)
    print(text)
    if gap["f32"] > 1e-4 or gap["bf16"] > 2e-2:
        sys.exit("the card does not follow the CPU")


main()
