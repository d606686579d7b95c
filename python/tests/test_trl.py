"""Rounds in TRL's trainers, beside our own training on the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LLAMA, command
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from training import load, rows, weights
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from hft_surgery import HFTCallback

OPTIMIZER = "--learning-rate 3e-3 --weight-decay 0.1 --adam-epsilon 1e-5"
COMMON: dict[str, Any] = dict(
    use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], save_strategy="no", disable_tqdm=True,
    learning_rate=3e-3, weight_decay=0.1, adam_epsilon=1e-5, lr_scheduler_type="linear", num_train_epochs=3, logging_steps=1,
    per_device_train_batch_size=2, train_sampling_strategy="sequential", max_length=None,
)  # fmt: skip


def tokenizer() -> Any:
    model = WordLevel({**{f"w{i}": i for i in range(48) if i != 2}, "</s>": 2}, unk_token="w0")
    inner = Tokenizer(model)
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="w1")


def write(path: Path, made: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def check(tmp_path: Path, trainer: Any, hft: HFTCallback, own: Path) -> None:
    """The trained weights are those of ``own``; what no plan trained is the start's."""
    start, ours, theirs = weights(load()), load_file(own / "model.safetensors"), weights(trainer.model)
    touched = set().union(*(plan.trainable for plan in hft.plans))
    for name, weight in theirs.items():
        assert (weight - ours[name]).abs().max().item() < 1e-4, name
        assert torch.equal(weight, start[name]) == (name not in touched), name
    proofs = [json.loads((tmp_path / f"hf/rounds/{n}/metrics.json").read_text()) for n in range(3)]
    assert [p["frozen_bit_identical"] for p in proofs] == [True] * 3


def test_sft(tmp_path: Path) -> None:
    hft = HFTCallback(rounds=3)
    args = SFTConfig(output_dir=str(tmp_path / "hf"), gradient_accumulation_steps=2, loss_type="nll", **COMMON)
    data = Dataset.from_list(rows())
    trainer = SFTTrainer(load(), args=args, train_dataset=data, processing_class=tokenizer(), callbacks=[hft])
    trainer.train()
    file = write(tmp_path / "rows.jsonl", rows())
    options = "--rounds 3 --epochs 1 --no-shuffle --batch-size 2 --gradient-accumulation-steps 2"
    command("train", "--model", LLAMA / "llama3", "--data", file, "--out", tmp_path / "own", *options.split(), *OPTIMIZER.split())
    check(tmp_path, trainer, hft, tmp_path / "own")


def pairs() -> list[dict[str, str]]:
    generator = torch.Generator().manual_seed(7)

    def words(n: int) -> str:
        return " ".join(f"w{i}" for i in torch.randint(3, 48, (n,), generator=generator).tolist())

    lengths = [(3, 4, 9), (5, 6, 2), (1, 12, 7), (8, 1, 3)]
    return [{"prompt": words(p), "chosen": " " + words(c) + " ", "rejected": " " + words(r) + " "} for p, c, r in lengths]


@pytest.mark.parametrize("loss", ["sigmoid"])
def test_dpo(tmp_path: Path, loss: str) -> None:
    hft = HFTCallback(rounds=3)
    args = DPOConfig(output_dir=str(tmp_path / "hf"), loss_type=[loss], beta=0.5, padding_free=False, **COMMON)
    trainer = DPOTrainer(
        load(),
        ref_model=load(),
        args=args,
        train_dataset=Dataset.from_list(pairs()),
        processing_class=tokenizer(),
        callbacks=[hft],
    )
    trainer.train()
    ids = [{f"{k}_input_ids": row[f"{k}_ids"] for k in ("prompt", "chosen", "rejected")} for row in trainer.train_dataset]
    file = write(tmp_path / "pairs.jsonl", ids)
    options = f"--objective dpo --loss-type {loss} --beta 0.5 --rounds 3 --epochs 1 --no-shuffle --batch-size 2"
    command("train", "--model", LLAMA / "llama3", "--data", file, "--out", tmp_path / "own", *options.split(), *OPTIMIZER.split())
    check(tmp_path, trainer, hft, tmp_path / "own")
