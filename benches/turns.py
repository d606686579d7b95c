"""Runs commands in turn, several times, and prints medians, ratios and peak anonymous memory.

usage: turns.py RUNS BYTES NAME=COMMAND...

One turn runs every command once, so that a slow moment of the machine hits all alike. `{out}` in a command is a path
that does not exist yet; it is removed, and the disk brought to rest, before the next run. BYTES is what a run
produces or reads, for the column GB/s; 0 leaves it out. The first command is the measure of the ratios; TIMES in the
environment says how often a turn runs it, where another takes minutes. WARM=0 in the environment counts the first
turn too, for commands that take minutes; READ names directories, between colons, whose files are read before every
run, so that they are in the page cache even after minutes of something else; COLD names directories whose files are
dropped from it before every run. LIMIT is a number of bytes: every command runs in a memory control group that may not
use more, its file pages included. Memory is the largest sum of RssAnon
over the command's processes, sampled every 5 ms: mapped files do not count.
"""
import atexit
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time


def anonymous(root):
    """KiB of anonymous memory of `root` and its descendants."""
    total, todo = 0, [root]
    while todo:
        pid = todo.pop()
        try:
            with open(f"/proc/{pid}/status") as f:
                total += sum(int(line.split()[1]) for line in f if line.startswith("RssAnon"))
            with open(f"/proc/{pid}/task/{pid}/children") as f:
                todo += f.read().split()
        except OSError:
            pass
    return total


def memory_group(limit):
    """A control group below that of this process, of version 1 or 2, removed at the end."""
    for line in open("/proc/self/cgroup"):
        _, controllers, group = line.strip().split(":", 2)
        root, name = ("/sys/fs/cgroup", "memory.max") if not controllers else ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        if controllers and "memory" not in controllers.split(","):
            continue
        path = os.path.join(root, group.strip("/"), f"turns-{os.getpid()}")
        try:
            os.mkdir(path)
        except OSError:
            continue
        atexit.register(os.rmdir, path)
        if os.path.exists(os.path.join(path, name)):
            with open(os.path.join(path, name), "w") as f:
                f.write(str(limit))
            return path
    sys.exit("LIMIT: this user may make no memory control group here")


def once(command, group):
    """Seconds and peak KiB of one run."""
    if ";" not in command and "&&" not in command:
        command = "exec " + command
    if group:
        command = f"echo $$ > {group}/cgroup.procs; {command}"
    start = time.perf_counter()
    child = subprocess.Popen(["bash", "-c", command],
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak, done = 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous(child.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    message = child.stderr.read()
    code = child.wait()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if code != 0:
        sys.exit(f"exit code {code}: {command}\n{message.decode()}")
    return seconds, peak


def bring_to_memory(directories):
    for directory in filter(None, directories):
        for name in os.listdir(directory):
            with open(os.path.join(directory, name), "rb") as f:
                while f.read(1 << 24):
                    pass


def drop_from_memory(directories):
    for directory in filter(None, directories):
        for name in os.listdir(directory):
            file = os.open(os.path.join(directory, name), os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def main():
    runs, size = int(sys.argv[1]), int(sys.argv[2])
    commands = [argument.split("=", 1) for argument in sys.argv[3:]]
    seen = {name: [] for name, _ in commands}
    warm = int(os.environ.get("WARM", "1"))
    times = int(os.environ.get("TIMES", "1"))
    limit = os.environ.get("LIMIT")
    group = memory_group(limit) if limit else None
    for turn in range(runs + warm):
        for name, command in commands[:1] * (times - 1) + commands:
            bring_to_memory(os.environ.get("READ", "").split(":"))
            drop_from_memory(os.environ.get("COLD", "").split(":"))
            out = os.path.join(tempfile.mkdtemp(dir=os.environ.get("BENCH_DIR")), "out")
            result = once(command.replace("{out}", out), group)
            shutil.rmtree(os.path.dirname(out))
            os.sync()
            if turn >= warm:  # the first turn warms the page cache
                seen[name].append(result)
    first = statistics.median(s for s, _ in seen[commands[0][0]])
    print(f"{'command':28} {'median s':>9} {'min':>7} {'max':>7} {'ratio':>7} {'GB/s':>6} {'anon MiB':>9}")
    for name, results in seen.items():
        seconds = sorted(s for s, _ in results)
        median = statistics.median(seconds)
        rate = f"{size / median / 1e9:6.2f}" if size else "     -"
        peak = max(k for _, k in results) / 1024
        print(f"{name:28} {median:9.3f} {seconds[0]:7.3f} {seconds[-1]:7.3f} {median / first:7.2f} {rate} {peak:9.1f}")


main()
