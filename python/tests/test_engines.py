"""Rounds on two processes, with an interruption in the middle of the second, and what must not be given to an engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from conftest import LLAMA, ROOT
from safetensors.torch import load_file
from training import load, rows, trainer_of

from hft_surgery import HFTCallback, HFTError, Plan, apply, diff
from hft_surgery.traps import refuse_partial_save

EXAMPLE = ROOT / "python" / "examples" / "rounds.py"
TRAPS = ROOT / "python" / "tests" / "zero_traps.py"


def torchrun(processes: int, script: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Runs a script on processes of the CPU, with gloo."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    # DeepSpeed compiles its communication for the CPU with ninja, which stands beside the interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PATH": path}
    command = [*launcher, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=600, check=False)


def write_rows(directory: Path) -> Path:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


def run(out: Path, engine: str, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = ["--engine", engine, "--model", LLAMA / "llama3", "--data", write_rows(out.parent), "--out", out]
    return torchrun(2, EXAMPLE, *arguments, "--cpu", "--steps", "2", *more)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights after three rounds of DDP in one go."""
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    whole = run(out, "ddp")
    assert whole.returncode == 0, whole.stderr[-4000:]
    return load_file(out / "rounds/2/model/model.safetensors")


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero2", "zero3"])
def test_three_rounds_on_two_processes(tmp_path: Path, engine: str, uninterrupted: dict[str, torch.Tensor]) -> None:
    out = tmp_path / "run"
    cut = run(out, engine, "--stop", "1:1")
    assert cut.returncode != 0 and "KeyboardInterrupt" in cut.stderr, cut.stderr[-4000:]
    assert (out / "rounds/0/metrics.json").is_file() and not (out / "rounds/1/metrics.json").exists()
    assert (out / "rounds/1/state/checkpoint-1/hft_surgery.json").is_file()
    again = run(out, engine)
    assert again.returncode == 0, again.stderr[-4000:]
    before = LLAMA / "llama3"
    for number in range(3):
        kept = out / "rounds" / str(number)
        plan = Plan.load(kept / "plan.json")
        assert plan == Plan.draw(LLAMA / "llama3", round=number)
        found = diff(before, kept / "model", plan=plan)
        assert found["plan"] == {"holds": True, "frozen": len(plan.frozen), "trainable": len(plan.trainable), "unmoved": []}
        assert Plan.load(kept / "model" / "hft_surgery.json") == plan
        before = kept / "model"
    # The last checkpoint is one that transformers loads, and the interruption changed nothing.
    model, saved = load(before), load_file(before / "model.safetensors")
    assert all(torch.equal(p, saved[name]) for name, p in model.named_parameters())
    assert saved.keys() == uninterrupted.keys()
    furthest = {name: (saved[name] - weight).abs().max().item() for name, weight in uninterrupted.items()}
    assert max(furthest.values()) < 1e-5, furthest
    done = run(out, engine, "--rounds", "1")
    assert done.returncode == 0 and "'loss'" not in done.stdout  # a round that has ended is not repeated


def test_what_deepspeed_must_not_be_given(tmp_path: Path) -> None:
    done = torchrun(1, TRAPS, LLAMA / "llama3", write_rows(tmp_path), tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    expected = {
        "wrapped": "wrapped by DeepSpeedEngine already",
        "missing from a group": "tensor `model.embed_tokens.weight`: trainable in the plan, but in no parameter group",
        "no whole weights": "ZeRO-3 saves no whole weights without stage3_gather_16bit_weights_on_model_save",
        "another plan": "saved under another plan than that of round 0 here",
        "another plan, DeepSpeed's optimizer": "saved under another plan than that of round 0 here",
        "several rounds": "several rounds in one trainer need a single process",
        "nvme": "offload_param on nvme",
        "tensor parallel": "DeepSpeed's tensor parallelism",
    }
    said = json.loads((tmp_path / "said.json").read_text())
    assert said.keys() == expected.keys()
    for name, part in expected.items():
        assert part in said[name], name


def test_wrapped_models_are_refused() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.nn.parallel import DistributedDataParallel

    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        wrapped = {
            "DistributedDataParallel": DistributedDataParallel(load()),
            "FullyShardedDataParallel": FullyShardedDataParallel(load(), use_orig_params=True, device_id=torch.device("cpu")),
            "FSDPModule": fully_shard(load()),
        }
        for kind, model in wrapped.items():
            with pytest.raises(HFTError, match=f"wrapped by {kind} already"):
                apply(model, Plan.draw(LLAMA / "llama3"))
    finally:
        torch.distributed.destroy_process_group()


def test_what_fsdp_must_not_be_given(tmp_path: Path) -> None:
    trainer: Any = trainer_of(tmp_path)
    state = trainer.accelerator.state
    trainer.is_fsdp_enabled = True
    with pytest.raises(HFTError, match=r"use hft_surgery.run_rounds"):
        HFTCallback(rounds=2).attach(trainer)
    try:
        state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=1, use_orig_params=False)
        with pytest.raises(HFTError, match="FSDP1 without use_orig_params"):
            HFTCallback().attach(trainer)
        state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=1, use_orig_params=True)
        with pytest.raises(HFTError, match="run_rounds gathers the shards of FSDP2"):
            refuse_partial_save(trainer)
        state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
        refuse_partial_save(trainer)
        HFTCallback().attach(trainer)
    finally:
        state.fsdp_plugin = None
