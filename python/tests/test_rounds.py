"""``run_rounds`` on one process: what it refuses, and what it says when a round does not follow its plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LLAMA
from datasets import Dataset
from safetensors.torch import load_file, save_file
from training import arguments, collate, load, rows, trainer_of
from transformers import Trainer

from hft_surgery import HFTCallback, HFTError, Plan, Round, run_rounds

MODEL = LLAMA / "llama3"


def make_trainer(this: Round, kind: type[Trainer] = Trainer, data: Any = None, **kwargs: Any) -> Trainer:
    args = arguments(Path(this.output_dir), max_steps=1, **kwargs)
    return kind(load(Path(this.model)), args, data_collator=collate, train_dataset=Dataset.from_list(data or rows()))


def test_another_plan_is_refused(tmp_path: Path) -> None:
    run_rounds(make_trainer, MODEL, tmp_path, rounds=1)
    with pytest.raises(HFTError, match=r"plan.json: round 0 of this run was started with another plan"):
        run_rounds(make_trainer, MODEL, tmp_path, rounds=1, seed=1)


class MovesFrozen(Trainer):
    """Changes a frozen tensor between the end of its training and its saving."""

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            self.model.model.norm.weight.add_(1)
        super().save_model(*args, **kwargs)


class SavesTheHead(Trainer):
    """Saves a tied head a second time."""

    def save_model(self, output_dir: Any = None, *args: Any, **kwargs: Any) -> None:
        super().save_model(output_dir, *args, **kwargs)
        path = Path(output_dir) / "model.safetensors"
        tensors = load_file(path)
        save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path, metadata={"format": "pt"})


class MovesNothing(Trainer):
    """Saves what it started from."""

    def save_model(self, output_dir: Any = None, *args: Any, **kwargs: Any) -> None:
        super().save_model(output_dir, *args, **kwargs)
        Path(output_dir, "model.safetensors").write_bytes((MODEL / "model.safetensors").read_bytes())


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (MovesFrozen, "tensor `model.norm.weight`: frozen, but it moved"),
        (SavesTheHead, "tensor `lm_head.weight`: only in b"),
        (MovesNothing, "tensor `model.embed_tokens.weight`: trainable, but it did not move\n"),
    ],
)
def test_a_round_that_does_not_follow_its_plan_is_no_result(tmp_path: Path, kind: type[Trainer], what: str) -> None:
    plan = Plan.draw(MODEL, norms="freeze")
    with pytest.raises(HFTError) as raised:
        run_rounds(lambda this: make_trainer(this, kind), MODEL, tmp_path, rounds=1, plans=plan)
    assert f"against the plan of round 0 (a: {MODEL}, b: {tmp_path}/rounds/0/model)" in raised.value.message
    assert what in raised.value.message
    assert not (tmp_path / "rounds/0/metrics.json").exists()


def test_a_graph_is_not_kept_across_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A graph that is kept is compiled again where what requires gradients has changed, until the limit is reached.
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    compiled = dict(torch_compile=True, torch_compile_backend="aot_eager", data=rows()[:1] * 4)
    last = run_rounds(lambda this: make_trainer(this, **compiled), MODEL, tmp_path, rounds=2, ratio=0.3)
    assert last == tmp_path / "rounds/1/model"
    for number in range(2):
        metrics = json.loads((tmp_path / f"rounds/{number}/metrics.json").read_text())
        assert metrics["frozen_bit_identical"] and metrics["unmoved"] == []


def test_trainers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HFTError, match="make_trainer returned a trainer with an HFTCallback"):
        run_rounds(lambda this: trainer_of(Path(this.output_dir), callbacks=[HFTCallback()]), MODEL, tmp_path / "a")
    with pytest.raises(HFTError, match=f"output_dir is {tmp_path}/elsewhere, expected {tmp_path}/b/rounds/0/state"):
        run_rounds(lambda this: trainer_of(tmp_path / "elsewhere"), MODEL, tmp_path / "b")
    with pytest.raises(HFTError, match=f"got a model in BF16, expected F32 as in {MODEL}"):
        run_rounds(lambda this: trainer_of(Path(this.output_dir), load().bfloat16()), MODEL, tmp_path / "d")
    with pytest.raises(HFTError, match="rounds: got 0, expected 1 or more"):
        run_rounds(make_trainer, MODEL, tmp_path / "c", rounds=0)
