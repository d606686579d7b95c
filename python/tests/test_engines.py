"""Three rounds on two processes, with an interruption in the middle of the second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import LLAMA, ROOT, load, rows
from safetensors.torch import load_file

from hft_surgery import HFTCallback, HFTError, Plan, diff

EXAMPLE = ROOT / "python" / "examples" / "rounds.py"


def run(out: Path, engine: str, *more: str) -> subprocess.CompletedProcess[str]:
    data = out.parent / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["--engine", engine, "--model", str(LLAMA / "llama3"), "--data", str(data), "--out", str(out), "--cpu"]
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(EXAMPLE), *arguments, "--steps", "2", *more]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=600, check=False)


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_three_rounds_on_two_processes(tmp_path: Path, engine: str) -> None:
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
    # The last checkpoint is one that transformers loads.
    model, saved = load(before), load_file(before / "model.safetensors")
    assert all(torch.equal(p, saved[name]) for name, p in model.named_parameters())
    refused = run(out, engine, "--rounds", "1")
    assert refused.returncode == 0  # the first round is done, with the same plan


def test_wrapped_models_are_refused() -> None:
    from torch.nn.parallel import DistributedDataParallel

    from hft_surgery import apply

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        wrapped = DistributedDataParallel(load())
        with pytest.raises(HFTError, match="wrapped by DistributedDataParallel already"):
            apply(wrapped, Plan.draw(LLAMA / "llama3"))
        from torch.distributed.fsdp import fully_shard

        sharded = fully_shard(load())
        with pytest.raises(HFTError, match="wrapped by FSDPModule already"):
            apply(sharded, Plan.draw(LLAMA / "llama3"))
    finally:
        torch.distributed.destroy_process_group()


def test_several_rounds_in_one_distributed_trainer_are_refused(tmp_path: Path) -> None:
    from conftest import trainer_of

    trainer = trainer_of(tmp_path)
    trainer.is_fsdp_enabled = True
    with pytest.raises(HFTError, match=r"use hft_surgery.run_rounds"):
        HFTCallback(rounds=2).attach(trainer)
    trainer.is_fsdp_enabled = False
    trainer.accelerator.state.fsdp_plugin = type("Plugin", (), {"fsdp_version": 1, "use_orig_params": False})()
    try:
        with pytest.raises(HFTError, match="FSDP1 without use_orig_params"):
            HFTCallback().attach(trainer)
    finally:
        trainer.accelerator.state.fsdp_plugin = None
