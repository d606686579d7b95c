"""Half Fine-Tuning in rounds on several processes: DDP, FSDP2, DeepSpeed ZeRO-2 or ZeRO-3.

    torchrun --nproc-per-node 2 rounds.py --engine fsdp2 --model MODEL --data rows.jsonl --out run

Rows hold `input_ids` and `labels`. Start it again with the same arguments to go on after an interruption.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from hft_surgery import Round, run_rounds

BATCH = {"per_device_train_batch_size": 2}
ZERO: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_optimization": {"stage": 2},
    # The optimizer of the trainer, which HFTCallback has checked, not one of DeepSpeed's own.
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"ddp_find_unused_parameters": False},
    "fsdp2": {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "state_dict_type": "SHARDED_STATE_DICT",
        },
    },
    "zero2": {"deepspeed": ZERO},
    "zero3": {
        "deepspeed": {**ZERO, "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}},
    },
}


def pad_rows(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pads token ids and labels at the right."""
    longest = max(len(row["input_ids"]) for row in features)
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in features]
    pad = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {k: torch.tensor([[*row[k], *[v] * (longest - len(row[k]))] for row in rows]) for k, v in pad.items()}


class StopAt(TrainerCallback):
    """Ends the process in the middle of a round, to show that the run goes on from there."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def shard_on_cpu(trainer: Trainer) -> None:
    """FSDP2 runs on the CPU, but accelerate takes DDP there without a word."""
    state = trainer.accelerator.state
    state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="SHARDED_STATE_DICT"
    )
    trainer.is_fsdp_enabled = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="steps of a round")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--stop", help="ROUND:STEP to be interrupted at")
    args = parser.parse_args()
    if args.engine.startswith("zero") and args.cpu:
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")
    rows = [json.loads(line) for line in Path(args.data).read_text(encoding="utf-8").splitlines()]

    def make_trainer(this: Round) -> Trainer:
        # The arguments come first: with ZeRO-3 the model is loaded in parts.
        arguments = TrainingArguments(
            output_dir=this.output_dir,
            max_steps=args.steps,
            learning_rate=args.learning_rate,
            use_cpu=args.cpu,
            save_strategy="steps",
            save_steps=1000,
            report_to=[],
            disable_tqdm=True,
            logging_steps=1,
            **BATCH,
            **ENGINES[args.engine],
        )
        model = AutoModelForCausalLM.from_pretrained(this.model, dtype=torch.float32)
        stop = [int(part) for part in (args.stop or "-1:0").split(":")]
        callbacks = [StopAt(stop[1])] if stop[0] == this.number else []
        trainer = Trainer(model, arguments, data_collator=pad_rows, train_dataset=rows, callbacks=callbacks)
        if args.cpu and args.engine == "fsdp2":
            shard_on_cpu(trainer)
        return trainer

    last = run_rounds(make_trainer, args.model, args.out, args.rounds)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        print(json.dumps({"checkpoint": str(Path(last))}))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
