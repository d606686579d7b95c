"""Runs `train` on DIR/model and prints what its log says of each step, with the memory it took; called by benches/seven_billion.sh.

usage: seven_billion.py DIR LENGTH BATCH STEPS [OPTION...]

Resident memory is anonymous (trained weights, gradients, activations, moments that are not offloaded) or of mapped files (frozen
weights, offloaded moments), which the kernel may take back when memory is short. The parts are sampled twice a second, so that
their peaks may be a little higher; the peak of both together is the kernel's own.
"""
import json
import os
import shutil
import subprocess
import sys
import time

GB = 1e9


def resident(pid):
    """Bytes of anonymous memory and of mapped files."""
    with open(f"/proc/{pid}/status") as f:
        fields = dict(line.split(":", 1) for line in f)
    size = lambda name: int(fields.get(name, "0 kB").split()[0]) * 1024
    return size("RssAnon"), size("RssFile") + size("RssShmem")


def limited(command, limit):
    """The command within a memory control group with that limit, and the group's directory."""
    if not limit:
        return command, None
    group = f"/sys/fs/cgroup/hft-seven-billion-{os.getpid()}"
    version_1 = not os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    if version_1:
        group = group.replace("cgroup/", "cgroup/memory/")
    os.mkdir(group)
    with open(f"{group}/{'memory.limit_in_bytes' if version_1 else 'memory.max'}", "w") as f:
        f.write(limit)
    return ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *command], group


def main():
    directory, length, batch, steps = sys.argv[1], *sys.argv[2:5]
    out, offload = f"{directory}/out", os.environ["OFFLOAD"]
    command = [os.environ["HFT_BINARY"], "train", "--model", f"{directory}/model", "--data", f"{directory}/rows.jsonl",
               "--out", out, "--device", "cpu", "--ratio", "0.5", "--max-steps", steps, "--max-length", length,
               "--batch-size", batch, "--no-shuffle", "--learning-rate", "1e-5", "--lr-scheduler", "constant",
               "--optimizer", "adamw8bit", "--master", "none", "--optimizer-in-backward", "--max-grad-norm", "0",
               "--logging-steps", "1", "--no-sync", "--json"]
    command += (["--offload", offload] if offload else []) + sys.argv[5:]
    shutil.rmtree(out, ignore_errors=True)
    print("$ " + " ".join(command), flush=True)
    begin = time.monotonic()
    whole, group = limited(command, os.environ["LIMIT"])
    child = subprocess.Popen(whole, stdout=subprocess.PIPE, text=True)
    anonymous = mapped = 0
    try:
        while child.poll() is None:
            try:
                now = resident(child.pid)
                anonymous, mapped = max(anonymous, now[0]), max(mapped, now[1])
            except FileNotFoundError:
                pass
            time.sleep(0.5)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        if group:
            os.rmdir(group)
    if child.returncode != 0:
        sys.exit(f"status {child.returncode}")
    result = json.loads(child.stdout.read())
    with open(f"{out}/train_log.jsonl") as f:
        log = [json.loads(line) for line in f]
    print("| step | loss | tokens | seconds | tokens/s |\n|--:|--:|--:|--:|--:|")
    for line in log:
        seconds = line["tokens"] / line["tokens_per_second"]
        print(f"| {line['step']} | {line['loss']:.4f} | {line['tokens']} | {seconds:.1f} | {line['tokens_per_second']:.1f} |")
    part = result["rounds"][0]
    print(f"trained: {part['trainable_parameters']} of {part['parameters']} parameters")
    print(f"peak memory: {result['peak_memory'] / GB:.2f} GB; anonymous {anonymous / GB:.2f} GB, mapped files {mapped / GB:.2f} GB")
    print(f"whole run: {time.monotonic() - begin:.0f} s")
    shutil.rmtree(out)


main()
