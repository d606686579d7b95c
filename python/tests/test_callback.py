"""Rounds in the Trainer of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LLAMA, command
from safetensors.torch import load_file
from training import load, rows, trainer_of, weights
from transformers import TrainerCallback

from hft_surgery import HFTCallback, HFTError, Plan, diff, reset


class Snapshots(TrainerCallback):
    """The weights before each step."""

    def __init__(self) -> None:
        self.before: list[dict[str, torch.Tensor]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.before.append(weights(model))


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def test_each_round_moves_its_plan_and_nothing_else(tmp_path: Path) -> None:
    hft, snapshots = HFTCallback(rounds=3), Snapshots()
    trainer = trainer_of(tmp_path, callbacks=[hft, snapshots])
    trainer.train()
    states = [*snapshots.before[::4], weights(trainer.model)]
    assert len(states) == 4
    assert len({plan.text for plan in hft.plans}) == 3
    for number, (plan, before, after) in enumerate(zip(hft.plans, states, states[1:])):
        assert plan.text == (tmp_path / "rounds" / str(number) / "plan.json").read_text()
        assert plan == Plan.draw(LLAMA / "llama3", round=number)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved == set(plan.trainable), f"round {number}"
        metrics = json.loads((tmp_path / "rounds" / str(number) / "metrics.json").read_text())
        assert metrics["frozen_bit_identical"] and metrics["steps"] == 4 and metrics["unmoved"] == []


@pytest.mark.parametrize(("family", "schedule"), [("llama3", "linear"), ("qwen3", "cosine")])
def test_weights_are_those_of_our_own_training(tmp_path: Path, family: str, schedule: str) -> None:
    trainer = trainer_of(
        tmp_path / "hf", load(family), [HFTCallback(rounds=3, seed=7)], lr_scheduler_type=schedule, warmup_steps=0
    )
    trainer.train()
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    own = tmp_path / "own"
    options = "--rounds 3 --epochs 1 --no-shuffle --seed 7 --batch-size 2 --gradient-accumulation-steps 2"
    optimizer = f"--learning-rate 3e-3 --weight-decay 0.1 --adam-epsilon 1e-5 --lr-scheduler {schedule}"
    command("train", "--model", LLAMA / family, "--data", data, "--out", own, *options.split(), *optimizer.split())
    ours, start = load_file(own / "model.safetensors"), weights(load(family))
    for name, weight in trainer.model.named_parameters():
        furthest = (weight.detach() - ours[name]).abs().max().item()
        assert furthest < 1e-4, f"{name}: {furthest}"
    # The bound means something: training moved the weights by far more.
    assert max((start[name] - ours[name]).abs().max().item() for name in start) > 5e-3


def test_saved_checkpoints_know_their_plan(tmp_path: Path) -> None:
    hft = HFTCallback(rounds=1, seed=4)
    trainer = trainer_of(tmp_path / "run", callbacks=[hft])
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    provenance = json.loads((tmp_path / "saved" / "hft_surgery.json").read_text())
    assert provenance["plan"] == hft.plan.to_dict()
    assert provenance["inputs"][0]["path"] == str(LLAMA / "llama3")
    found = diff(LLAMA / "llama3", tmp_path / "saved", plan=tmp_path / "saved" / "hft_surgery.json")
    assert found["plan"] == {"holds": True, "frozen": len(hft.plan.frozen), "trainable": len(hft.plan.trainable), "unmoved": []}
    # The same plan returns nothing: what it freezes is the base's already.
    done = reset(LLAMA / "llama3", tmp_path / "saved", tmp_path / "half", plan=tmp_path / "saved" / "hft_surgery.json")
    assert done["plan"] == hft.plan.to_dict()
    assert diff(tmp_path / "saved", tmp_path / "half")["identical"]


@pytest.mark.parametrize("stop", [4, 6])
def test_a_run_goes_on_in_the_middle_of_a_round(tmp_path: Path, stop: int) -> None:
    whole = trainer_of(tmp_path / "whole", callbacks=[HFTCallback(rounds=3)])
    whole.train()
    saving = dict(save_strategy="steps", save_steps=1)
    first = trainer_of(tmp_path / "cut", callbacks=[HFTCallback(rounds=3), StopAt(stop)], **saving)
    first.train()
    second = trainer_of(tmp_path / "cut", callbacks=[HFTCallback(rounds=3)], **saving)
    second.train(resume_from_checkpoint=True)
    expected = weights(whole.model)
    for name, weight in weights(second.model).items():
        assert torch.equal(weight, expected[name]), name
    kept = [json.loads((tmp_path / "cut/rounds" / str(n) / "metrics.json").read_text()) for n in range(3)]
    assert [metrics["frozen_bit_identical"] for metrics in kept] == [True] * 3


def test_another_plan_is_refused_at_resume(tmp_path: Path) -> None:
    saving = dict(save_strategy="steps", save_steps=1)
    trainer_of(tmp_path, callbacks=[HFTCallback(rounds=3), StopAt(6)], **saving).train()
    other = trainer_of(tmp_path, callbacks=[HFTCallback(rounds=3, seed=1)], **saving)
    with pytest.raises(HFTError, match="saved under another plan than that of round 1 here"):
        other.train(resume_from_checkpoint=True)
    other = trainer_of(tmp_path, callbacks=[HFTCallback(rounds=2)], **saving)
    with pytest.raises(HFTError, match="saved with rounds 3, expected 2"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    (tmp_path / "checkpoint-6" / "hft_surgery.json").unlink()
    plain = trainer_of(tmp_path, callbacks=[HFTCallback(rounds=3)], **saving)
    with pytest.raises(HFTError, match="was not saved by a run with HFTCallback"):
        plain.train(resume_from_checkpoint=True)


def test_a_checkpoint_that_was_changed_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    saving = dict(save_strategy="steps", save_steps=1)
    trainer_of(tmp_path, callbacks=[HFTCallback(rounds=3), StopAt(6)], **saving).train()
    again = HFTCallback(rounds=3)
    trainer = trainer_of(tmp_path, callbacks=[again], **saving)
    path = tmp_path / "checkpoint-6" / "model.safetensors"
    tensors = load_file(path)
    tensors[again.plans[1].frozen[0]] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(HFTError, match="its frozen tensors have changed since the round began"):
        trainer.train(resume_from_checkpoint=True)


class Meddling(TrainerCallback):
    """Changes a frozen tensor."""

    def __init__(self, hft: HFTCallback, step: int) -> None:
        self.hft, self.step = hft, step

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                model.get_parameter(self.hft.plan.frozen[0]).add_(1e-3)


@pytest.mark.parametrize("step", [0, 2])
def test_a_frozen_tensor_that_moves_is_found(tmp_path: Path, step: int) -> None:
    hft = HFTCallback(rounds=3)
    trainer = trainer_of(tmp_path, callbacks=[hft, Meddling(hft, step)])
    with pytest.raises(HFTError, match="frozen by the plan of round 0, but changed by the trainer"):
        trainer.train()


def test_a_trainable_tensor_that_does_not_move_is_named(tmp_path: Path) -> None:
    def cut_off(trainer: Any, hft: HFTCallback) -> None:
        # A loss that misses one block: its tensors get no gradient.
        trainer.model.model.layers[2].forward = lambda hidden_states, *args, **kwargs: hidden_states

    hft = HFTCallback(ratio=1.0)
    trainer = trainer_of(tmp_path / "a", callbacks=[hft], weight_decay=0.0)
    cut_off(trainer, hft)
    with pytest.warns(UserWarning, match=r"not moved by the first step of round 0: `model.layers.2"):
        trainer.train()
    assert len(json.loads((tmp_path / "a/rounds/0/metrics.json").read_text())["unmoved"]) == 9
    strict = HFTCallback(ratio=1.0, strict=True)
    trainer = trainer_of(tmp_path / "b", callbacks=[strict], weight_decay=0.0)
    cut_off(trainer, strict)
    with pytest.raises(HFTError, match="not moved by the first step"):
        trainer.train()


def test_a_warm_up_from_zero_is_no_fault(tmp_path: Path) -> None:
    trainer_of(tmp_path, callbacks=[HFTCallback(rounds=3, strict=True)], warmup_steps=2).train()


def test_traps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HFTError, match=r"torch\.compile keeps a graph"):
        trainer_of(tmp_path, callbacks=[HFTCallback(rounds=2)], torch_compile=True)
    with pytest.raises(HFTError, match=r"torch\.compile keeps a graph"):
        trainer_of(tmp_path, torch.compile(load()), [HFTCallback(rounds=2)])
    compiled = load()
    compiled.model.layers[0].compile()
    with pytest.raises(HFTError, match=r"torch\.compile keeps a graph"):
        trainer_of(tmp_path, compiled, [HFTCallback(rounds=2)])
    with pytest.raises(HFTError, match="load_best_model_at_end"):
        best_model(tmp_path)
    with pytest.raises(HFTError, match="expected one step or more for each"):
        trainer_of(tmp_path, callbacks=[HFTCallback(rounds=13)]).train()
    with pytest.raises(HFTError, match="was added to a trainer that exists"):
        late = trainer_of(tmp_path)
        late.add_callback(HFTCallback())
        late.train()
    with pytest.raises(HFTError, match="plans: got 2, expected one, or one for each of 3 rounds"):
        HFTCallback(rounds=3, plans=[Plan.draw(LLAMA / "llama3")] * 2)
    with pytest.raises(HFTError, match="trains no parameter"):
        trainer_of(tmp_path, callbacks=[HFTCallback(strategy="explicit", draw={"freeze": ["*"]})])


def best_model(out: Path) -> Any:
    from datasets import Dataset
    from training import arguments, collate
    from transformers import Trainer

    args = arguments(out, load_best_model_at_end=True, save_strategy="epoch", eval_strategy="epoch")
    data = Dataset.from_list(rows())
    return Trainer(load(), args, data_collator=collate, train_dataset=data, eval_dataset=data, callbacks=[HFTCallback(rounds=2)])


def test_a_group_that_a_plan_leaves_empty_is_left_out(tmp_path: Path) -> None:
    # The second group of the trainer is what has no weight decay: the norms.
    trainer = trainer_of(tmp_path, callbacks=[HFTCallback(rounds=2, draw={"norms": "freeze"})])
    trainer.train()
    assert len(trainer.optimizer.param_groups) == 1


def test_attach_does_what_the_constructor_does(tmp_path: Path) -> None:
    given = trainer_of(tmp_path / "a", callbacks=[HFTCallback(rounds=2)])
    attached = trainer_of(tmp_path / "b")
    HFTCallback(rounds=2).attach(attached)
    given.train()
    attached.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(given.model).values(), weights(attached.model).values()))


def test_training_twice_begins_with_the_first_plan(tmp_path: Path) -> None:
    hft, snapshots = HFTCallback(rounds=2), Snapshots()
    trainer = trainer_of(tmp_path, callbacks=[hft, snapshots])
    trainer.train()
    snapshots.before.clear()
    trainer.train()
    moved = {n for n in snapshots.before[0] if not torch.equal(snapshots.before[0][n], snapshots.before[6][n])}
    assert moved == set(hft.plans[0].trainable)
