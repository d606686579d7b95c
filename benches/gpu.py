"""The part of gpu.sh that trains: losses on the GPU against the CPU, then speed and memory.

Sections run in order, each within a share of --budget. One that finds no time left is skipped, and the report says which;
the first wrong number ends the run with status 1, and the report has what was found until then.
"""
import argparse
import concurrent.futures
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

import gpu_cases
import gpu_report
import random_checkpoint
from gpu_cases import ANCHORS, BF16, CHOICES, F32, PEAKS

BEGIN = time.monotonic()
# Steps that are not measured: the first runs as it comes, the second is recorded as a graph.
SKIP = 2


# What the program says of a way to train that it does not have on a GPU.
NOT_ON_A_GPU = ["not computed on a GPU", "computed on the CPU only"]


class Wrong(Exception):
    """A number that is not what it must be, or a command that fails."""


class NoTime(Exception):
    """The time of a section is used up."""


class Refused(Exception):
    """The program does not do this."""


def parse():
    a = argparse.ArgumentParser()
    a.add_argument("binary")
    a.add_argument("--operations", required=True, help="what the test program printed")
    a.add_argument("--sanitizer", required=True)
    a.add_argument("--work", required=True)
    a.add_argument("--results", default="benches/results")
    a.add_argument("--budget", type=float, default=560, help="seconds from the start of gpu.sh [default: 560]")
    a.add_argument("--elapsed", type=float, default=0, help="seconds of them that are gone")
    a.add_argument("--tiny", action="store_true", help="tiny models; what the program refuses is listed")
    a.add_argument("--families", help="names of fixtures/llama, with commas [default: all]")
    a.add_argument("--choices", help="names of cases of gpu_cases.py, with commas [default: all]")
    a.add_argument("--without-pytorch", action="store_true", help="leave PyTorch out; the report says so")
    return a.parse_args()


class Bench:
    """The options, the time, and what was found."""

    def __init__(self, options):
        self.options = options
        self.size = gpu_cases.TINY_SIZE if options.tiny else gpu_cases.FULL_SIZE
        self.end = BEGIN - options.elapsed + options.budget
        self.until = self.end
        self.found = {"tiny": options.tiny, "budget": options.budget, "sanitizer": options.sanitizer, "wrong": None,
                      "sections": [], "missing": [], "families": [], "choices": [], "speeds": [], "ratios": [], "pytorch": []}
        self.help = self.run(["train", "--help"]).decode()
        self.numbers = itertools.count()

    def left(self):
        """Seconds that the section may still take."""
        left = self.until - time.monotonic()
        if left < 1:
            raise NoTime
        return left

    def run(self, arguments):
        """The output of a command of the program."""
        try:
            result = subprocess.run([self.options.binary, "--quiet", *arguments], capture_output=True, check=False,
                                    timeout=self.left())
        except subprocess.TimeoutExpired as fault:
            raise NoTime from fault
        return self.checked(arguments, result.returncode, result.stdout, result.stderr.decode(errors="replace"))

    @staticmethod
    def checked(arguments, status, stdout, stderr):
        text = f"status {status}: {' '.join(arguments)}\n{stderr[-4000:]}"
        if status == 2 and any(words in stderr for words in NOT_ON_A_GPU):
            raise Refused(text)
        if status != 0:
            raise Wrong(text)
        return stdout

    def section(self, name, share, work):
        """Runs `work` within a share of the whole time."""
        begin, state = time.monotonic(), "done"
        self.until = min(self.end, begin + share * self.options.budget)
        print(f"== {name} ({begin - BEGIN + self.options.elapsed:.0f} s)", flush=True)
        try:
            work()
        except NoTime:
            state = "skipped, or ended early: its time was used up"
        finally:
            self.found["sections"].append({"name": name, "seconds": time.monotonic() - begin, "state": state})

    def missing(self, name, flags):
        """Lists options that the program does not have, which only a tiny run passes over."""
        unknown = [flag for flag in flags if flag.startswith("--") and not re.search(rf"{flag}\b(?!-)", self.help)]
        if unknown:
            self.refused(name, f"no option {', '.join(unknown)}")
        return bool(unknown)

    def refused(self, name, text):
        if not self.options.tiny:
            raise Wrong(f"{name}: {text}")
        lines = [line for line in text.splitlines() if line.startswith("error: ")] or [text]
        self.found["missing"].append({"name": name, "why": lines[0]})

    def model(self, shape):
        path = f"{self.options.work}/{shape}"
        if not os.path.exists(f"{path}/model.safetensors"):
            self.left()
            print(f"   making {shape}", flush=True)
            random_checkpoint.write(path, shape)
        return path

    def out(self):
        return f"{self.options.work}/out-{next(self.numbers)}"

    def train(self, arguments):
        """The summary and the log of a run."""
        out = self.out()
        text = self.run(["train", "--out", out, "--no-sync", "--json", *arguments])
        with open(f"{out}/train_log.jsonl", encoding="utf-8") as f:
            log = [json.loads(line) for line in f]
        shutil.rmtree(out)
        if not all(math.isfinite(line["loss"]) for line in log):
            raise Wrong(f"a loss is not finite: {' '.join(arguments)}")
        return json.loads(text), log

    def losses(self, arguments):
        return [line["loss"] for line in self.train(arguments)[1]]

    def steps_of(self, arguments, steps):
        """The log of the first steps of a run, which is ended then, and the most memory of the GPU that the system saw."""
        out, log, memory = self.out(), [], None
        os.makedirs(out, exist_ok=True)
        stderr_path = f"{self.options.work}/stderr"
        command = [self.options.binary, "train", "--out", f"{out}/run", "--no-sync", *arguments]
        with open(stderr_path, "w", encoding="utf-8") as stderr:
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            while len(log) < steps:
                self.left()
                ended = child.poll() is not None
                if os.path.exists(f"{out}/run/train_log.jsonl"):
                    with open(f"{out}/run/train_log.jsonl", encoding="utf-8") as f:
                        log = [json.loads(line) for line in f if line.endswith("\n")]
                memory = most(memory, memory_in_use())
                if ended:
                    break
                time.sleep(0.05)
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
            child.wait()
            shutil.rmtree(out, ignore_errors=True)
        with open(stderr_path, encoding="utf-8") as f:
            text = f.read()
        if len(log) < steps:
            self.checked(command[1:], child.returncode, b"", text)
            raise Wrong(f"{len(log)} of {steps} steps: {' '.join(command)}\n{text[-4000:]}")
        if not all(math.isfinite(line["loss"]) for line in log):
            raise Wrong(f"a loss is not finite: {' '.join(command)}")
        planned = re.search(r"memory: (.*)", text)
        return log[:steps], memory, planned.group(1) if planned else None


def most(a, b):
    return max((x for x in (a, b) if x is not None), default=None)


def memory_in_use():
    """Bytes that `nvidia-smi` sees in use on the first GPU; None where it is not there."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    result = subprocess.run(query, capture_output=True, check=False)
    lines = result.stdout.decode().split()
    return int(lines[0]) << 20 if result.returncode == 0 and lines else None


def gap(expected, got):
    """Largest difference, as a share of the first loss."""
    if len(expected) != len(got) or not expected:
        raise Wrong(f"{len(got)} losses, expected {len(expected)}")
    return max(abs(a - b) for a, b in zip(expected, got)) / abs(expected[0])


def within(name, difference, bound):
    if not difference <= bound:
        raise Wrong(f"{name}: the losses are {difference:.1e} apart, at most {bound:.0e} is right")


def write_lines(path, rows):
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def operations(bench):
    with open(bench.options.operations, encoding="utf-8") as f:
        text = f.read()
    line = re.compile(r"(\w+) +(F32|Bf16) error (\S+) \(at most (\S+)\)")
    errors = [dict(zip(["operation", "type", "error", "bound"], found)) for found in line.findall(text)]
    bandwidth = re.search(r"bandwidth copy (\S+) GB/s, adamw (\S+) GB/s", text)
    if not errors or not bandwidth:
        raise Wrong("no operation was tested, or no bandwidth measured")
    copy, adamw = map(float, bandwidth.groups())
    bench.found["operations"] = errors
    bench.found["bandwidth"] = {"copy": copy, "adamw": adamw, "share": adamw / copy}


def families(bench):
    """Three steps of each family of fixtures/llama: CPU, f32 and bf16."""
    names = sorted(name for name in os.listdir("fixtures/llama")
                   if os.path.exists(f"fixtures/llama/{name}/config.json") and name not in gpu_cases.CPU_ONLY)
    chosen = bench.options.families.split(",") if bench.options.families else names
    rows = [{"input_ids": [(i * 13 + t * t * 5) % 48 for t in range(5 + i * 7 % 11)]} for i in range(6)]
    data = write_lines(f"{bench.options.work}/families.jsonl", rows)

    def of(name):
        model = f"{bench.options.work}/family-{name}"
        os.makedirs(model, exist_ok=True)
        for file in ["config.json", "model.safetensors"]:
            shutil.copy(f"fixtures/llama/{name}/{file}", model)
        arguments = ["--model", model, "--data", data, "--batch-size", "3", "--learning-rate", "3e-3", "--max-steps", "3",
                     "--adam-epsilon", "1e-5", "--seed", "5", "--weight-decay", "0.1", "--device"]
        cpu = bench.losses([*arguments, "cpu"])
        f32 = gap(cpu, bench.losses([*arguments, "cuda", "--compute-dtype", "float32"]))
        bf16 = gap(cpu, bench.losses([*arguments, "cuda"]))
        return {"name": name, "f32": f32, "bf16": bf16}

    with concurrent.futures.ThreadPoolExecutor(2 if bench.options.tiny else 6) as pool:
        runs = {name: pool.submit(of, name) for name in chosen}
        for name, run in runs.items():
            try:
                found = run.result()
            except Refused as fault:
                bench.refused(name, str(fault))
                continue
            bench.found["families"].append(found)
            within(f"{name}, f32", found["f32"], F32)
            within(f"{name}, bf16", found["bf16"], BF16)


def choice_rows(bench, model):
    vocab = random_checkpoint.SHAPES[bench.size[model]][6]
    draw, work = random.Random(1), bench.options.work

    def ids(least, most_of):
        return [draw.randrange(vocab) for _ in range(draw.randint(least, most_of))]

    tokens = [{"input_ids": ids(20, 64)} for _ in range(4)]
    pairs = [{"prompt_input_ids": ids(4, 16), "chosen_input_ids": ids(4, 32), "rejected_input_ids": ids(4, 32)}
             for _ in range(4)]
    return {"tokens": write_lines(f"{work}/{model}-tokens.jsonl", tokens),
            "pairs": write_lines(f"{work}/{model}-pairs.jsonl", pairs)}


def choices(bench):
    """Every way to train against the CPU, or against another run on the GPU."""
    rows = {model: choice_rows(bench, model) for model in ["dense", "mixture"]}
    known = {}

    def losses(case, flags, device):
        key = (case.model, case.rows, flags, device, case.dtype if device == "cuda" else None)
        if key not in known or case.beside is None and case.than == device:
            rate = () if "--learning-rate" in flags else ("--learning-rate", bench.size["rates"][case.rows])
            dtype = ("--compute-dtype", case.dtype) if device == "cuda" else ()
            known[key] = bench.losses(["--model", bench.model(bench.size[case.model]), "--data", rows[case.model][case.rows],
                                       "--batch-size", "2", "--max-steps", str(bench.size["steps"]), "--seed", "3", "--no-shuffle",
                                       "--lr-scheduler", "constant",
                                       "--adam-epsilon", "1e-5", "--device", device, *dtype, *rate, *flags])
        return known[key]

    chosen = bench.options.choices.split(",") if bench.options.choices else [case.name for case in CHOICES]
    for case in (case for case in CHOICES if case.name in chosen):
        bench.left()
        if bench.missing(case.name, case.flags):
            continue
        try:
            got = losses(case, case.flags, "cuda")
            expected = losses(case, case.flags if case.beside is None else case.beside, case.than)
        except Refused as fault:
            bench.refused(case.name, str(fault))
            continue
        difference = gap(expected, got)
        print(f"   {case.name}: {difference:.1e} apart", flush=True)
        beside = {"cpu": "the CPU", "cuda": "the GPU again" if case.beside is None else "the GPU without"}[case.than]
        bench.found["choices"].append({"name": case.name, "flags": " ".join(case.flags), "type": case.dtype, "beside": beside,
                                       "gap": difference, "bound": case.bound, "first": got[0], "last": got[-1]})
        within(case.name, difference, case.bound)
        # Rows come again, so that the first and the last step have the same.
        if not abs(got[-1] - got[0]) > 1e-3 * got[0]:
            raise Wrong(f"{case.name}: the loss stays at {got[0]}, so that its likeness says nothing")


def plan_of(bench, model, ratio):
    path = f"{bench.options.work}/plan-{os.path.basename(model)}-{ratio}.json"
    if not os.path.exists(path):
        bench.run(["plan", model, "--ratio", ratio, "--seed", "0", "--out", path])
    return path


def speed_arguments(bench, shape, ratio, seq, batch, steps):
    model = bench.model(shape)
    vocab = random_checkpoint.SHAPES[shape][6]
    draw = random.Random(1)
    rows = [{"input_ids": draw.choices(range(vocab), k=seq)} for _ in range(steps * batch)]
    data = write_lines(f"{bench.options.work}/rows.jsonl", rows)
    # The rows end after `steps` steps; a run that is ended from outside is given one more epoch.
    return ["--model", model, "--data", data, "--plan", plan_of(bench, model, ratio), "--batch-size", str(batch),
            "--max-length", str(seq), "--no-shuffle", "--lr-scheduler", "constant", "--learning-rate", "2e-5",
            "--device", "cuda"]


def step_seconds(log):
    return statistics.median(line["tokens"] / line["tokens_per_second"] for line in log[SKIP:])


def speed(bench, case):
    arguments = speed_arguments(bench, case.model, case.ratio, case.seq, case.batch, case.steps)
    found = {"model": case.model, "trained": case.name, "flags": " ".join(case.flags), "seq": case.seq, "batch": case.batch}
    if case.whole:
        summary, log = bench.train([*arguments, "--epochs", "1", *case.flags])
        part = summary["rounds"][0]
        flops = (part["flops_per_token"] * part["tokens"] + part["head_flops_per_target"] * part["targets"]) / part["steps"]
        found |= {"planned_bytes": part["planned_bytes"], "peak_bytes": summary["device_memory"], "flops_per_step": flops,
                  "gemm_gflops": summary["gemm_gflops"], "memory": part["memory"]}
        if found["peak_bytes"] > found["planned_bytes"]:
            raise Wrong(f"{case.model}, {case.name}: {found['peak_bytes']} bytes in use, {found['planned_bytes']} planned")
    else:
        log, seen, planned = bench.steps_of([*arguments, "--epochs", "2", *case.flags], case.steps)
        found |= {"seen_bytes": seen, "planned": planned}
    step = step_seconds(log)
    found |= {"step_seconds": step, "tokens_per_second": case.batch * case.seq / step, "losses": [l["loss"] for l in log]}
    if "flops_per_step" in found:
        found["gflops"] = found["flops_per_step"] / step / 1e9
    anchor = ANCHORS.get(case.model)
    if anchor:
        found |= {"anchor": anchor, "of_anchor": found["tokens_per_second"] / anchor}
    return found


def speeds(bench):
    for case in bench.size["speeds"]:
        bench.left()
        name = f"{case.model}, {case.name}"
        if bench.missing(name, case.flags):
            continue
        try:
            found = speed(bench, case)
        except Refused as fault:
            bench.refused(name, str(fault))
            continue
        bench.found["speeds"].append(found)
        print(f"   {name}: {found['tokens_per_second']:.0f} tokens/s", flush=True)
        beside = [s for s in bench.found["speeds"] if s["model"] == case.model and s["trained"] == "half"]
        if "float8" in case.name and beside:
            found["loss_gap"] = gap(beside[0]["losses"], found["losses"])
            within(name, found["loss_gap"], gpu_cases.EIGHT_BITS)


def ratios(bench):
    """Half against full at each size of a step."""
    shape = bench.size["ratios"]
    flops = {s["trained"]: s.get("flops_per_step") for s in bench.found["speeds"] if s["model"] == shape}
    predicted = flops["half"] / flops["full"] if flops.get("half") and flops.get("full") else None
    for tokens in bench.size["tokens"]:
        seq, seconds = min(tokens, bench.size["seq"]), {}
        for name, ratio in [("full", "1"), ("half", "0.5")]:
            bench.left()
            steps = SKIP + (4 if tokens > 16384 or bench.options.tiny else 8)
            arguments = speed_arguments(bench, shape, ratio, seq, tokens // seq, steps)
            log, _, _ = bench.steps_of([*arguments, "--epochs", "2"], steps)
            seconds[name] = step_seconds(log)
        bench.found["ratios"].append({"model": shape, "tokens": tokens, "full_seconds": seconds["full"],
                                      "half_seconds": seconds["half"], "measured": seconds["half"] / seconds["full"],
                                      "predicted": predicted})


def pytorch(bench):
    """The first model with PyTorch: the same rows and the same trainable tensors."""
    for case in [c for c in bench.size["speeds"] if c.model == bench.size["ratios"] and not c.flags]:
        arguments = speed_arguments(bench, case.model, case.ratio, case.seq, case.batch, case.steps)
        of = dict(zip(arguments[::2], arguments[1::2]))
        command = [sys.executable, "benches/peers/peer_train_cuda.py", of["--model"], "--rows", of["--data"], "--plan",
                   of["--plan"], "--batch", str(case.batch), "--device", "cpu" if bench.options.tiny else "cuda"]
        try:
            result = subprocess.run(command, capture_output=True, check=False, timeout=bench.left())
        except subprocess.TimeoutExpired as fault:
            raise NoTime from fault
        if result.returncode != 0:
            raise Wrong(f"status {result.returncode}: {' '.join(command)}\n{result.stderr.decode()[-4000:]}")
        found = json.loads(result.stdout.decode().splitlines()[-1])
        step = statistics.median(found["seconds"][SKIP:])
        bench.found["pytorch"].append({**found, "model": case.model, "trained": case.name, "step_seconds": step,
                                       "tokens_per_second": case.batch * case.seq / step})


def has_pytorch():
    return subprocess.run([sys.executable, "-c", "import torch, transformers"], capture_output=True, check=False).returncode == 0


def work(bench):
    doctor = json.loads(bench.run(["doctor", "--json"]))
    gpu = doctor["GPUs"][0]
    peak = next((tflops * 1e3 for name, tflops in PEAKS.items() if name in gpu["name"]), None)
    bench.found |= {"gpu": gpu, "libraries": doctor["libraries"], "peak_gflops": peak}
    bench.section("operations", 1.0, lambda: operations(bench))
    bench.section("families", 0.25, lambda: families(bench))
    bench.section("ways to train", 0.3, lambda: choices(bench))
    bench.section("speed", 0.45, lambda: speeds(bench))
    bench.section("half against full", 0.15, lambda: ratios(bench))
    if bench.options.without_pytorch or not has_pytorch():
        why = "left out by --without-pytorch" if bench.options.without_pytorch else "PYTHON has no torch and transformers"
        bench.found["sections"].append({"name": "PyTorch", "seconds": 0.0, "state": why})
    else:
        bench.section("PyTorch", 0.3, lambda: pytorch(bench))


def main():
    options = parse()
    bench = Bench(options)
    try:
        work(bench)
    except (Wrong, Refused) as fault:
        bench.found["wrong"] = str(fault)
    os.makedirs(options.results, exist_ok=True)
    with open(f"{options.results}/gpu.json", "w", encoding="utf-8") as f:
        json.dump(bench.found, f, indent=1)
    text = gpu_report.report(bench.found)
    with open(f"{options.results}/gpu.md", "w", encoding="utf-8") as f:
        f.write(text)
    print(text)
    if bench.found["wrong"]:
        sys.exit(f"error: {bench.found['wrong']}")


if __name__ == "__main__":
    main()
