"""What cannot be trained by plans in a trainer of transformers, refused by name before anything is trained."""

from __future__ import annotations

from typing import Any

from .errors import HFTError


def refuse_trainer(trainer: Any, rounds: int) -> None:
    """Refuses a trainer in which a plan, or several of them, would not hold.

    Args:
        trainer: a trainer that has not begun.
        rounds: number of rounds that this one trainer is to make.

    Raises:
        HFTError: one of the known traps.
    """
    _refuse_fsdp(trainer)
    if trainer.is_deepspeed_enabled:
        _refuse_deepspeed(zero_config(trainer))
    if trainer.optimizer is not None:
        raise HFTError("the trainer has an optimizer already, made before the plan was applied", "leave out `optimizers`")
    if rounds > 1:
        _refuse_rounds(trainer)


def _refuse_fsdp(trainer: Any) -> None:
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and getattr(plugin, "fsdp_version", 1) == 1 and not plugin.use_orig_params:
        raise HFTError(
            "FSDP1 without use_orig_params puts trainable and frozen parameters into one flat parameter",
            "use FSDP2 (fsdp_version: 2), or set fsdp_use_orig_params: true",
        )
    if getattr(trainer.args, "fsdp", None) and trainer.accelerator.distributed_type != "FSDP":
        kind = str(trainer.accelerator.distributed_type)
        raise HFTError(
            f"FSDP was asked for, but accelerate runs {kind} on this device, and would not shard",
            "accelerate shards on accelerators with more than one process only; leave out fsdp",
        )


def _refuse_deepspeed(config: dict[str, Any]) -> None:
    zero = config.get("zero_optimization", {})
    if (zero.get("offload_param") or {}).get("device") == "nvme":
        raise HFTError(
            "ZeRO-3 with offload_param on nvme keeps the weights in files, where no proof reads them",
            "set device in offload_param to cpu, or leave offload_param out",
        )
    if config.get("tensor_parallel", {}).get("autotp_size", 1) > 1:
        raise HFTError(
            "DeepSpeed's tensor parallelism replaces modules after the plan was applied",
            "leave out tensor_parallel of the DeepSpeed configuration; ZeRO-3 shards every tensor",
        )


def _refuse_rounds(trainer: Any) -> None:
    args = trainer.args
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or trainer.accelerator.num_processes > 1:
        raise HFTError(
            "several rounds in one trainer need a single process: DDP, FSDP and DeepSpeed settle which parameters are "
            "reduced and sharded when they wrap the model",
            "use hft_surgery.run_rounds, which makes a new trainer for each round",
        )
    if args.torch_compile or compiled(trainer.model):
        raise HFTError(
            "torch.compile keeps a graph in which the frozen tensors of the first round are constants",
            "use hft_surgery.run_rounds, or leave out torch_compile",
        )
    if args.load_best_model_at_end:
        raise HFTError(
            "load_best_model_at_end may bring back the weights of an earlier round, which is no result of the last plan",
            "leave it out, or use hft_surgery.run_rounds",
        )


def refuse_partial_save(trainer: Any) -> None:
    """Refuses what would leave no whole checkpoint after a round.

    Raises:
        HFTError: FSDP1; ZeRO-3 without ``stage3_gather_16bit_weights_on_model_save``.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and getattr(plugin, "fsdp_version", 1) == 1:
        raise HFTError("run_rounds gathers the shards of FSDP2, not the flat parameters of FSDP1", "use FSDP2 (fsdp_version: 2)")
    zero = zero_config(trainer).get("zero_optimization", {}) if trainer.is_deepspeed_enabled else {}
    if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise HFTError(
            "ZeRO-3 saves no whole weights without stage3_gather_16bit_weights_on_model_save",
            "set it to true in zero_optimization of the DeepSpeed configuration",
        )


def zero_config(trainer: Any) -> dict[str, Any]:
    """The DeepSpeed configuration of a trainer."""
    config: dict[str, Any] = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
    return config


def compiled(model: Any) -> bool:
    """Whether ``torch.compile(model)`` or ``model.compile()`` was called, for the model or a part of it."""
    kinds = ((type(module).__name__, getattr(module, "_compiled_call_impl", None)) for module in model.modules())
    return any(kind == "OptimizedModule" or call is not None for kind, call in kinds)
