"""The part of gpu.sh that trains: loss curves on the GPU against the CPU, then speed and memory.

Curves: 20 steps of 2 rows of 64 tokens; f32 on the GPU must stay within 1e-4 of the CPU, bf16 within 2e-2.
Throughput: rows of --seq tokens, --batch a step, in bf16, full and half, beside PyTorch with the same rows and the
same trainable tensors. Ratios: half against full at each of --tokens. A step's time is the median over the steps but
the first two, in which PyTorch compiles and hft-surgery records CUDA graphs.
"""
import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time

# Dense bf16 peak, TFLOP/s, of the data sheets (SXM).
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "B200": 2250}
SKIP = 2
BEGIN = time.monotonic()


def parse():
    a = argparse.ArgumentParser()
    a.add_argument("binary")
    a.add_argument("--operations", required=True)
    a.add_argument("--sanitizer", required=True)
    a.add_argument("--work", required=True)
    a.add_argument("--model", help="the checkpoint of the throughput [default: random, in the shape of TinyLlama-1.1B]")
    a.add_argument("--curves-model", help="the checkpoint of the curves [default: random, 8 layers of 512]")
    a.add_argument("--results", default="benches/results")
    a.add_argument("--steps", type=int, default=10)
    a.add_argument("--seq", type=int, default=2048)
    a.add_argument("--batch", type=int, default=8)
    a.add_argument("--tokens", default="1024,8192,65536")
    a.add_argument("--without-pytorch", action="store_true", help="leave PyTorch out; the report says so")
    return a.parse_args()


def note(text):
    print(f"== {text} ({time.monotonic() - BEGIN:.0f} s)", flush=True)


def output(command):
    result = subprocess.run(command, capture_output=True, check=False)
    if result.returncode != 0:
        sys.exit(f"status {result.returncode}: {' '.join(command)}\n{result.stderr.decode()[-4000:]}")
    return result.stdout


def made(work, shape):
    """A random checkpoint."""
    note(f"making a checkpoint: {shape}")
    output([sys.executable, "benches/peers/make_pair.py", f"{work}/{shape}", shape, "--base-only"])
    return f"{work}/{shape}/base"


def vocabulary(model):
    with open(f"{model}/config.json", encoding="utf-8") as f:
        return json.load(f)["vocab_size"]


def write_rows(path, count, length, vocab):
    draw = random.Random(1)
    with open(path, "w", encoding="utf-8") as f:
        for _ in range(count):
            f.write(json.dumps({"input_ids": [draw.randrange(vocab) for _ in range(length)]}) + "\n")
    return path


def train(options, model, rows, *more):
    out = f"{options.work}/out"
    text = output([options.binary, "--quiet", "train", "--model", model, "--data", rows, "--out", out, "--epochs", "1",
                   "--no-shuffle", "--lr-scheduler", "constant", "--learning-rate", "2e-5", "--no-sync", "--json", *more])
    with open(f"{out}/train_log.jsonl", encoding="utf-8") as f:
        log = [json.loads(line) for line in f]
    shutil.rmtree(out)
    return json.loads(text), log


def curves(options, model):
    rows = write_rows(f"{options.work}/short.jsonl", 40, 64, vocabulary(model))
    losses = {}
    for name, more in [("cpu", ["cpu"]), ("f32", ["cuda", "--compute-dtype", "float32"]), ("bf16", ["cuda"])]:
        note(f"20 steps: {name}")
        _, log = train(options, model, rows, "--batch-size", "2", "--ratio", "1.0", "--device", *more)
        losses[name] = [line["loss"] for line in log]
    gap = {name: max(abs(a - b) / a for a, b in zip(losses["cpu"], losses[name])) for name in ["f32", "bf16"]}
    return losses, gap


def measured(options, model, plan, steps, seq, batch):
    """Speed of our steps under a plan."""
    rows = write_rows(f"{options.work}/rows.jsonl", steps * batch, seq, vocabulary(model))
    result, log = train(options, model, rows, "--batch-size", str(batch), "--max-length", str(seq), "--plan", plan,
                        "--device", "cuda")
    part = result["rounds"][0]
    step = statistics.median(line["tokens"] / line["tokens_per_second"] for line in log[SKIP:])
    flops = (part["flops_per_token"] * part["tokens"] + part["head_flops_per_target"] * part["targets"]) / part["steps"]
    return {"tokens_per_second": batch * seq / step, "step_seconds": step, "gflops": flops / step / 1e9,
            "gemm_gflops": result["gemm_gflops"], "flops_per_step": flops, "peak_bytes": result["device_memory"],
            "planned_bytes": part["planned_bytes"], "losses": [line["loss"] for line in log]}


def peer(options, model, plan, seq, batch):
    """The same with PyTorch, on the rows of the last measurement."""
    text = output([sys.executable, "benches/peers/peer_train_cuda.py", model, "--rows", f"{options.work}/rows.jsonl",
                   "--plan", plan, "--batch", str(batch)])
    found = json.loads(text.splitlines()[-1])
    step = statistics.median(found["seconds"][SKIP:])
    return {**found, "step_seconds": step, "tokens_per_second": batch * seq / step, "peak_bytes": found["peak"]}


def speeds(options, model, plans):
    throughput, ratios = {}, []
    for name, plan in plans.items():
        note(f"throughput: {name}")
        ours = measured(options, model, plan, options.steps, options.seq, options.batch)
        theirs = None
        if not options.without_pytorch:
            note(f"throughput: {name}, PyTorch")
            theirs = peer(options, model, plan, options.seq, options.batch)
        throughput[name] = {"ours": ours, "pytorch": theirs}
    for tokens in map(int, options.tokens.split(",")):
        seq = min(tokens, options.seq)
        found = {}
        for name, plan in plans.items():
            note(f"{tokens} tokens a step: {name}")
            found[name] = measured(options, model, plan, 6 if tokens > 16384 else 10, seq, tokens // seq)
        full, half = found["full"], found["half"]
        ratios.append({"tokens": tokens, "full_seconds": full["step_seconds"], "half_seconds": half["step_seconds"],
                       "measured": half["step_seconds"] / full["step_seconds"],
                       "predicted": half["flops_per_step"] / full["flops_per_step"]})
    return throughput, ratios


def operations(path):
    with open(path, encoding="utf-8") as f:
        text = f.read()
    line = re.compile(r"(\w+) +(F32|Bf16) error (\S+) \(at most (\S+)\)")
    errors = [dict(zip(["operation", "type", "error", "bound"], found)) for found in line.findall(text)]
    bandwidth = re.search(r"bandwidth copy (\S+) GB/s, adamw (\S+) GB/s", text)
    if not errors or not bandwidth:
        sys.exit("no operation was tested, or no bandwidth measured")
    copy, adamw = map(float, bandwidth.groups())
    return errors, {"copy": copy, "adamw": adamw, "share": adamw / copy}


def peak_of(gpu):
    return next((tflops * 1e3 for name, tflops in PEAKS.items() if name in gpu), None)


def report(found):
    """The numbers as Markdown."""
    gpu, shape, bandwidth, gap = found["gpu"], found["shape"], found["bandwidth"], found["gap"]
    lines = [f"# {gpu['name']}, compute capability {gpu['compute_capability']}", "",
             f"compute-sanitizer: {found['sanitizer']}. 20 steps: f32 within {gap['f32']:.1e} of the CPU, bf16 within "
             f"{gap['bf16']:.1e}.", "",
             f"Copy {bandwidth['copy']:.0f} GB/s, masked AdamW {bandwidth['adamw']:.0f} GB/s: {bandwidth['share']:.0%}.", "",
             f"bf16, {shape['batch']} rows of {shape['seq']} tokens a step, {found['model']}:", "",
             "| trained | tokens/s | GFLOP/s | of gemm | of the dense bf16 peak | memory | planned | PyTorch tokens/s "
             "| speed | PyTorch memory | compiled |", "|---|" + "--:|" * 9 + "---|"]
    for name, speed in found["throughput"].items():
        ours, theirs = speed["ours"], speed["pytorch"]
        of_peak = "unknown" if found["peak_gflops"] is None else f"{ours['gflops'] / found['peak_gflops']:.0%}"
        beside = "left out | left out | left out | left out"
        if theirs:
            beside = (f"{theirs['tokens_per_second']:.0f} | {ours['tokens_per_second'] / theirs['tokens_per_second']:.2f} x | "
                      f"{theirs['peak_bytes'] / 1e9:.2f} GB | {theirs['compiled']}")
        lines.append(f"| {name} | {ours['tokens_per_second']:.0f} | {ours['gflops']:.0f} "
                     f"| {ours['gflops'] / ours['gemm_gflops']:.0%} | {of_peak} | {ours['peak_bytes'] / 1e9:.2f} GB "
                     f"| {ours['planned_bytes'] / 1e9:.2f} GB | {beside} |")
    if not found["pytorch"]:
        lines += ["", "PyTorch was left out by --without-pytorch."]
    lines += ["", "| tokens a step | full | half | half / full measured | predicted |", "|--:|--:|--:|--:|--:|"]
    lines += [f"| {r['tokens']} | {r['full_seconds'] * 1e3:.1f} ms | {r['half_seconds'] * 1e3:.1f} ms | {r['measured']:.2f} "
              f"| {r['predicted']:.2f} |" for r in found["ratios"]]
    lines += ["", "| operation | type | error | at most |", "|---|---|---|---|"]
    lines += [f"| {e['operation']} | {e['type']} | {e['error']} | {e['bound']} |" for e in found["operations"]]
    return "\n".join(lines) + "\n"


def main():
    options = parse()
    doctor = json.loads(output([options.binary, "doctor", "--json"]))
    errors, bandwidth = operations(options.operations)
    losses, gap = curves(options, options.curves_model or made(options.work, "small"))
    model = options.model or made(options.work, "1b")
    plans = {}
    for name, ratio in [("full", "1.0"), ("half", "0.5")]:
        plans[name] = f"{options.work}/{name}.json"
        output([options.binary, "plan", model, "--ratio", ratio, "--seed", "0", "--out", plans[name]])
    throughput, ratios = speeds(options, model, plans)
    gpu = doctor["GPUs"][0]
    found = {"gpu": gpu, "libraries": doctor["libraries"], "sanitizer": options.sanitizer, "operations": errors,
             "bandwidth": bandwidth, "losses": losses, "gap": gap, "peak_gflops": peak_of(gpu["name"]),
             "model": os.path.basename(options.model) if options.model else "random weights in the shape of TinyLlama-1.1B",
             "shape": {"seq": options.seq, "batch": options.batch, "steps": options.steps},
             "throughput": throughput, "ratios": ratios, "pytorch": not options.without_pytorch}
    os.makedirs(options.results, exist_ok=True)
    with open(f"{options.results}/gpu.json", "w", encoding="utf-8") as f:
        json.dump(found, f, indent=1)
    text = report(found)
    with open(f"{options.results}/gpu.md", "w", encoding="utf-8") as f:
        f.write(text)
    print(text)
    if gap["f32"] > 1e-4 or gap["bf16"] > 2e-2:
        sys.exit("the losses on the GPU differ from those on the CPU by more than the bounds")


main()
