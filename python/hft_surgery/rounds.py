"""Rounds with a new trainer each: the form for DDP, FSDP and DeepSpeed, which settle at wrapping what is trained."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, Union

import torch
from huggingface_hub import save_torch_state_dict
from transformers import Trainer

from .applied import some
from .binary import run
from .callback import HFTCallback, _plans
from .commands import diff
from .errors import HFTError
from .in_memory import DTYPES, tensors
from .plan import Plan, StrPath, write_whole
from .provenance import FILE_NAME
from .traps import refuse_partial_save


@dataclass(frozen=True)
class Round:
    """What a round starts from.

    Attributes:
        number: 0 for the first.
        model: the checkpoint to load the model from: that of the round before, or the first one.
        first_model: the checkpoint that the first round starts from, the reference model of DPO in all rounds.
        output_dir: ``output_dir`` for the arguments of the trainer.
        plan: what the round trains.
    """

    number: int
    model: str
    first_model: str
    output_dir: str
    plan: Plan


def run_rounds(
    make_trainer: Callable[[Round], Trainer],
    model: StrPath,
    output_dir: StrPath,
    rounds: int = 3,
    *,
    plans: Optional[Union[Plan, StrPath, Sequence[Union[Plan, StrPath]]]] = None,
    ratio: float = 0.5,
    strategy: str = "category",
    seed: int = 0,
    first_round: int = 0,
    strict: bool = False,
    draw: Optional[dict[str, Any]] = None,
) -> Path:
    """Trains in rounds, each with a trainer of its own from the checkpoint that the round before left.

    Called by every process. A round that has ended is proved on its checkpoint by ``hft-surgery diff --plan`` and is not
    repeated when the run is started again; a round that was interrupted goes on from its last checkpoint.

    Args:
        make_trainer: makes the trainer of a round, with the model of ``Round.model`` and ``Round.output_dir``. HFTCallback
            is added to it here.
        model: the checkpoint to start from.
        output_dir: the directory of the run; ``rounds/N/model`` is the checkpoint after a round.
        rounds: number of rounds; the other arguments are those of :class:`HFTCallback`.

    Returns:
        The checkpoint after the last round.

    Raises:
        HFTError: a frozen tensor that is not bit-identical in the checkpoint of a round; a run that was started with other
            plans; what HFTCallback refuses.
    """
    if rounds < 1:
        raise HFTError(f"rounds: got {rounds}, expected 1 or more")
    given = _plans(plans, rounds)
    if given is None:
        draws = range(first_round, first_round + rounds)
        options = {"ratio": ratio, "strategy": strategy, "seed": seed, **(draw or {})}
        given = [Plan.draw(model, round=number, **options) for number in draws]
    current = os.fspath(model)
    for number, plan in enumerate(given):
        kept = Path(output_dir) / "rounds" / str(number)
        after = kept / "model"
        _check_plan(kept, plan, number)
        if not (kept / "metrics.json").is_file():
            state = kept / "state"
            _run_round(make_trainer, Round(number, current, os.fspath(model), str(state), plan), kept, strict)
        current = str(after)
    return Path(current)


def _check_plan(kept: Path, plan: Plan, number: int) -> None:
    path = kept / "plan.json"
    if path.is_file() and Plan.load(path) != plan:
        raise HFTError(
            f"{path}: round {number} of this run was started with another plan",
            "go on with the plans that the run was started with, or choose another output_dir",
        )


def _run_round(make_trainer: Callable[[Round], Trainer], this: Round, kept: Path, strict: bool) -> None:
    # A graph that was compiled for the round before holds its frozen tensors as constants.
    torch._dynamo.reset()
    trainer: Any = make_trainer(this)
    callback = next((c for c in trainer.callback_handler.callbacks if isinstance(c, HFTCallback)), None)
    if callback is not None:
        raise HFTError("make_trainer returned a trainer with an HFTCallback", "run_rounds adds one itself")
    callback = HFTCallback(plans=this.plan, strict=strict).attach(trainer)
    if os.path.abspath(trainer.args.output_dir) != os.path.abspath(this.output_dir):
        raise HFTError(
            f"make_trainer: output_dir is {trainer.args.output_dir}, expected {this.output_dir}", "use round.output_dir"
        )
    refuse_partial_save(trainer)
    _check_types(this, trainer)
    main = trainer.is_world_process_zero()
    if main:
        write_whole(kept / "plan.json", this.plan.text)
    checkpoint = _last_whole_checkpoint(Path(this.output_dir))
    trainer.accelerator.wait_for_everyone()
    trainer.train(resume_from_checkpoint=checkpoint)
    _save(trainer, kept / "model")
    callback.write_provenance(kept / "model")
    trainer.accelerator.wait_for_everyone()
    faults = [_prove(this, kept, trainer) if main else None]
    if trainer.accelerator.num_processes > 1:
        torch.distributed.broadcast_object_list(faults, src=0)
    trainer.accelerator.wait_for_everyone()
    _release(trainer)
    if faults[0] is not None:
        raise faults[0]


def _check_types(this: Round, trainer: Any) -> None:
    """Refuses a model of another type than its checkpoint before the training: what it freezes is not bit-identical when it
    is saved. DeepSpeed changes the type when it wraps the model, so there only the checkpoint after the round tells."""
    if trainer.is_deepspeed_enabled:
        return
    stored = set(json.loads(run(["inspect", this.model, "--json"]))["dtypes"])
    held = {DTYPES[str(tensor.dtype).removeprefix("torch.")][0] for tensor in tensors(trainer.model).values()}
    if not stored & held:
        raise HFTError(
            f"make_trainer: got a model in {', '.join(sorted(held))}, expected {', '.join(sorted(stored))} as in {this.model}",
            'load it with dtype="auto", or start from a checkpoint that was saved in the type of the training',
        )


def _last_whole_checkpoint(directory: Path) -> Optional[str]:
    """The newest checkpoint of a trainer that was written to its end: a kill leaves one without its last files."""
    found = [path for path in directory.glob("checkpoint-*") if path.name.partition("-")[2].isdigit()]
    whole = [path for path in found if all((path / name).is_file() for name in ("trainer_state.json", FILE_NAME))]
    newest = max(whole, key=lambda path: int(path.name.partition("-")[2]), default=None)
    return None if newest is None else str(newest)


def _save(trainer: Any, directory: Path) -> None:
    """Writes the whole model, as ``save_pretrained`` does. Called by every process."""
    if trainer.is_fsdp_enabled:
        _save_shards(trainer, directory)
    else:
        trainer.save_model(str(directory))


def _save_shards(trainer: Any, directory: Path) -> None:
    """Gathers the shards of FSDP2, one tensor after the other, and writes them on the first process. The trainer itself writes
    no whole model in the usual state_dict_type SHARDED_STATE_DICT."""
    model, main = trainer.model, trainer.is_world_process_zero()
    whole = {}
    for name, tensor in tensors(model).items():
        part: Any = tensor.detach()
        gathered = part.full_tensor() if hasattr(part, "full_tensor") else part
        if main:
            whole[name] = gathered.cpu().contiguous()
    if not main:
        return
    directory.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(directory)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(directory)
    if trainer.processing_class is not None:
        trainer.processing_class.save_pretrained(directory)
    save_torch_state_dict(whole, directory)


def _prove(this: Round, kept: Path, trainer: Any) -> Optional[HFTError]:
    """Compares the checkpoint after the round with the one before it; what is wrong, if anything is. Writes the metrics,
    which tell that the round is done."""
    after = kept / "model"
    try:
        report = diff(this.model, after, plan=this.plan)
    except HFTError as error:
        return error
    if not report["plan"]["holds"]:
        faults = [f"tensor `{fault['name']}`: {fault['what']}" for fault in report["failed"]]
        return HFTError(f"{after}: against the plan of round {this.number} (a: {this.model}, b: {after})\n{some(faults)}")
    metrics = {
        "round": this.number,
        "steps": trainer.state.global_step,
        "frozen_bit_identical": True,
        "frozen": report["plan"]["frozen"],
        "trainable": report["plan"]["trainable"],
        "unmoved": report["plan"]["unmoved"],
    }
    write_whole(kept / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return None


def _release(trainer: Any) -> None:
    """Frees the model, the optimizer and the engine of a round."""
    trainer.accelerator.free_memory()
    trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = None
    trainer.callback_handler.model = trainer.callback_handler.optimizer = None
    gc.collect()
