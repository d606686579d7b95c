"""What DeepSpeed must not be given, and an optimizer of its own, on one process; prints what was said to each as JSON.

torchrun --standalone --nproc-per-node 1 zero_traps.py MODEL ROWS DIRECTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Callable

import deepspeed
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from hft_surgery import HFTCallback, HFTError, Plan, apply, check_optimizer, run_rounds

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from rounds import ZERO, pad_rows

MODEL, ROWS, OUT = sys.argv[1], sys.argv[2], Path(sys.argv[3])
WHOLE = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
ADAM = {"type": "AdamW", "params": {"torch_adam": True, "lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}}


def load() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


def trainer_of(out: Path, zero: dict[str, Any], callbacks: Any = (), **more: Any) -> Trainer:
    """A trainer with a DeepSpeed configuration of its own, of a model that is loaded in parts with stage 3."""
    AcceleratorState._reset_state(reset_partial_state=True)
    settings = dict(max_steps=2, learning_rate=3e-3, per_device_train_batch_size=2, save_strategy="steps", save_steps=1)
    quiet = dict(use_cpu=True, report_to=[], disable_tqdm=True)
    config = {**ZERO, "zero_optimization": zero, **more}
    arguments = TrainingArguments(str(out), deepspeed=config, **settings, **quiet)
    rows = [json.loads(line) for line in Path(ROWS).read_text(encoding="utf-8").splitlines()]
    return Trainer(load(), arguments, data_collator=pad_rows, train_dataset=rows, callbacks=list(callbacks))


def missing_from_a_group() -> None:
    """An optimizer of the matrices: in parts they are vectors of no elements, all but those that are gathered just now."""
    model: Any = trainer_of(OUT / "group", WHOLE).model
    plan = Plan.draw(MODEL, ratio=1.0)
    apply(model, plan)
    assert {p.dim() for p in model.parameters()} == {1}
    with deepspeed.zero.GatheredParameters(list(model.model.layers[0].parameters())):
        matrices = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    check_optimizer(model, torch.optim.AdamW(matrices), plan)


def wrapped() -> None:
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True}
    model = load()
    engine = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config)[0]
    apply(engine, Plan.draw(MODEL))


def no_whole_weights() -> None:
    try:
        run_rounds(lambda this: trainer_of(Path(this.output_dir), {"stage": 3}), MODEL, OUT / "partial", rounds=1)
    finally:
        assert not [path for path in OUT.glob("partial/**/*") if path.is_file()], "nothing was trained"


def other_plan(zero: dict[str, Any], **more: Any) -> Callable[[], None]:
    def act() -> None:
        out = OUT / f"resumed{len(more)}"
        trainer_of(out, zero, [HFTCallback(seed=0)], **more).train()
        metrics = json.loads((out / "rounds/0/metrics.json").read_text(encoding="utf-8"))
        assert metrics["frozen_bit_identical"] and metrics["unmoved"] == []
        trainer_of(out, zero, [HFTCallback(seed=1)], **more).train(resume_from_checkpoint=str(out / "checkpoint-1"))

    return act


CASES: dict[str, Callable[[], object]] = {
    "wrapped": wrapped,
    "missing from a group": missing_from_a_group,
    "no whole weights": no_whole_weights,
    "another plan": other_plan(WHOLE),
    "another plan, DeepSpeed's optimizer": other_plan({"stage": 2}, optimizer=ADAM),
    "several rounds": lambda: trainer_of(OUT, {"stage": 2}, [HFTCallback(rounds=2)]),
    "nvme": lambda: trainer_of(OUT, {"stage": 2, "offload_param": {"device": "nvme"}}, [HFTCallback()]),
    "tensor parallel": lambda: trainer_of(OUT, {"stage": 2}, [HFTCallback()], tensor_parallel={"autotp_size": 2}),
}


def main() -> None:
    deepspeed.init_distributed(dist_backend="gloo")
    said: dict[str, Any] = {}
    for name, act in CASES.items():
        try:
            act()
        except HFTError as error:
            said[name] = error.message
    (OUT / "said.json").write_text(json.dumps(said), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
