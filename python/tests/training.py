"""Models, rows and the trainers that the tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conftest import LLAMA
from datasets import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments


def rows(count: int = 16, vocabulary: int = 48) -> list[dict[str, list[int]]]:
    """Rows of token ids of different lengths, whose first ids are no targets."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for i in range(count):
        ids = torch.randint(3, vocabulary, (4 + i % 5 * 3,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]]})
    return made


def collate(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pads at the right, without targets there."""
    longest = max(len(feature["input_ids"]) for feature in features)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.tensor([list(f[key]) + [value] * (longest - len(f[key])) for f in features])

    mask = [[1] * len(f["input_ids"]) + [0] * (longest - len(f["input_ids"])) for f in features]
    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100), "attention_mask": torch.tensor(mask)}


def load(family: str | Path = "llama3", **kwargs: Any) -> Any:
    path = LLAMA / family
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager", **kwargs)


def arguments(out: Path, **kwargs: Any) -> TrainingArguments:
    """Four steps of two micro-batches of two rows in an epoch, in the order of the rows."""
    options: dict[str, Any] = dict(
        output_dir=str(out),
        use_cpu=True,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=3,
        learning_rate=3e-3,
        weight_decay=0.1,
        adam_epsilon=1e-5,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
    )
    return TrainingArguments(**{**options, **kwargs})


def trainer_of(out: Path, model: Any = None, callbacks: Any = (), data: Any = None, **kwargs: Any) -> Trainer:
    return Trainer(
        model=model if model is not None else load(),
        args=arguments(out, **kwargs),
        train_dataset=Dataset.from_list(data or rows()),
        data_collator=collate,
        callbacks=list(callbacks),
    )


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}
