"""A plan applied to a PyTorch model, and the checks that it is held to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

from .errors import HFTError
from .in_memory import parameters, plain_name, whole_shape
from .plan import Plan

if TYPE_CHECKING:
    import torch

MOST = 5
"""Names that a message lists at most."""


@dataclass(frozen=True)
class Applied:
    """What :func:`apply` did.

    Attributes:
        trainable: names of the parameters that now require gradients; a tied one by its first name.
        frozen: names of all other parameters.
        trainable_parameters: elements of the trainable ones.
        frozen_parameters: elements of the frozen ones.
        tied: for each tied parameter its names.
    """

    trainable: tuple[str, ...]
    frozen: tuple[str, ...]
    trainable_parameters: int
    frozen_parameters: int
    tied: tuple[tuple[str, ...], ...]


def apply(model: torch.nn.Module, plan: Plan) -> Applied:
    """Sets ``requires_grad`` of every parameter as the plan says. Call it before the optimizer is made and before the model
    is wrapped for several processes.

    Names are compared whole. ``module.``, ``_orig_mod.``, ``_fsdp_wrapped_module.`` and ``_checkpoint_wrapped_module.`` in the
    names of the model are left out. A tied head and its embedding are one parameter.

    Raises:
        HFTError: a parameter that the plan lacks, a tensor of the plan that the model lacks, a tied pair in both lists, a
            trainable buffer, a row or element mask, a plan that trains nothing, a model that is wrapped already. Nothing
            is changed then.
    """
    check_not_wrapped(model)
    chosen = choose(model, plan)
    done: dict[str, list[str]] = {"trainable": [], "frozen": []}
    counts = {"trainable": 0, "frozen": 0}
    for names, parameter, on in chosen:
        parameter.requires_grad_(on)
        if not on:
            parameter.grad = None
        which = "trainable" if on else "frozen"
        done[which].append(names[0])
        size = 1
        for length in whole_shape(parameter):
            size *= length
        counts[which] += size
    tied = tuple(tuple(names) for names, _, _ in chosen if len(names) > 1)
    return Applied(tuple(done["trainable"]), tuple(done["frozen"]), counts["trainable"], counts["frozen"], tied)


def choose(model: torch.nn.Module, plan: Plan) -> list[tuple[list[str], torch.nn.Parameter, bool]]:
    """For each parameter its names, itself and whether the plan trains it.

    Raises:
        HFTError: as :func:`apply`, but for wrapped models.
    """
    if plan.masked:
        raise HFTError(
            "the plan has a row or element mask, but requires_grad is one for a whole tensor",
            "draw a plan with --granularity tensor, or use hft-surgery train",
        )
    on, off = set(plan.trainable), set(plan.frozen)
    named = parameters(model)
    buffers = {plain_name(name) for name, _ in model.named_buffers(remove_duplicate=False)}
    faults = [f"tensor `{name}`: in the plan, but not in the model" for name in sorted((on | off) - set(named) - buffers)]
    faults += [f"tensor `{name}`: a buffer cannot be trained" for name in sorted(on & buffers)]
    by_id: dict[int, tuple[list[str], torch.nn.Parameter]] = {}
    for name, parameter in named.items():
        by_id.setdefault(id(parameter), ([], parameter))[0].append(name)
    chosen = []
    for names, parameter in by_id.values():
        trains, freezes = bool(on & set(names)), bool(off & set(names))
        if trains and freezes:
            faults.append(f"tensor `{names[0]}`: tied with `{names[1]}`, but the two are in different lists")
        elif trains and not parameter.is_floating_point():
            faults.append(f"tensor `{names[0]}`: trainable in the plan, but quantized to {parameter.dtype}")
        elif not trains and not freezes:
            faults.append(f"tensor `{names[0]}`: in the model, but neither in `trainable` nor in `frozen`")
        chosen.append((names, parameter, trains))
    if faults:
        raise HFTError(some(faults), "draw the plan from this model: Plan.draw(model)")
    if not any(on for _, _, on in chosen):
        raise HFTError("the plan trains no parameter of the model", "an optimizer without parameters cannot be made")
    return chosen


def check_not_wrapped(model: torch.nn.Module) -> None:
    """Refuses a model that was prepared for several processes: which parameters are reduced and sharded how is settled then.

    Raises:
        HFTError: a model in DistributedDataParallel, FSDP or a DeepSpeed engine.
    """
    wrappers = {"DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine", "FSDPModule"}
    for module in model.modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if kinds & wrappers:
            wrapper = sorted(kinds & wrappers)[0]
            raise HFTError(
                f"the model is wrapped by {wrapper} already: which parameters take part was settled then",
                "apply the plan first, then wrap; for the next round make a new trainer, as hft_surgery.run_rounds does",
            )


def check_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, plan: Plan) -> None:
    """Checks that the groups of an optimizer hold every trainable parameter of the plan, each once, and no other.

    Call it before the optimizer is handed to an engine that replaces its groups, such as DeepSpeed.

    Raises:
        HFTError: an empty group, a parameter missing, frozen, twice, or of another model.
    """
    names = {id(p): (group_names, on) for group_names, p, on in choose(model, plan)}
    seen: list[int] = []
    faults = []
    for number, group in enumerate(_groups(optimizer)):
        if not group["params"]:
            faults.append(f"parameter group {number} of the optimizer is empty, which ZeRO cannot partition")
        seen += [id(p) for p in group["params"]]
    for key in seen:
        if key not in names:
            faults.append(
                "the optimizer holds a parameter that is not one of the model: it was made for another model or wrapping"
            )
        elif not names[key][1]:
            faults.append(f"tensor `{names[key][0][0]}`: frozen by the plan, but in the optimizer")
    present = set(seen)
    if len(present) < len(seen):
        twice = next(key for key in seen if seen.count(key) > 1)
        faults.append(f"tensor `{names[twice][0][0] if twice in names else '?'}`: twice in the optimizer")
    missing = [own for key, (own, on) in names.items() if on and key not in present]
    faults += [f"tensor `{own[0]}`: trainable in the plan, but in no parameter group of the optimizer" for own in missing]
    if faults:
        raise HFTError(some(faults), "apply the plan before the optimizer is made")


def _groups(optimizer: Any) -> list[dict[str, Any]]:
    """The parameter groups; also of the DummyOptim of accelerate, in whose place DeepSpeed puts an optimizer of its own."""
    if hasattr(optimizer, "param_groups"):
        groups: list[dict[str, Any]] = optimizer.param_groups
        return groups
    held = list(optimizer.params)
    return held if held and isinstance(held[0], dict) else [{"params": held}]


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor: all of it, its shard under FSDP2, its partition under DeepSpeed ZeRO-3."""
    part: Any = getattr(tensor, "ds_tensor", None)
    if part is None:
        part = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    held: torch.Tensor = part.detach()
    return held


def digests(model: torch.nn.Module) -> dict[str, str]:
    """The BLAKE2b digest of the bytes that this process holds of each parameter, by its first name."""
    found: dict[int, str] = {}
    by_name = {}
    for name, parameter in parameters(model).items():
        if id(parameter) not in found:
            found[id(parameter)] = name
            by_name[name] = digest(parameter)
    return by_name


def digest(tensor: torch.Tensor) -> str:
    """The BLAKE2b digest of what this process holds of a tensor."""
    import torch

    raw = local_part(tensor).contiguous().reshape(-1).view(torch.uint8)
    hasher = hashlib.blake2b(digest_size=32)
    step = 1 << 28
    for start in range(0, raw.numel(), step):
        hasher.update(raw[start : start + step].cpu().numpy().data)
    return hasher.hexdigest()


def combined(parts: Iterable[tuple[str, str]]) -> str:
    """One digest of names and their digests."""
    hasher = hashlib.blake2b(digest_size=32)
    for name, value in sorted(parts):
        hasher.update(f"{name}\0{value}\n".encode())
    return hasher.hexdigest()


def listed(names: list[str]) -> str:
    """The first names, and how many follow."""
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(f"`{name}`" for name in names[:MOST]) + more


def some(faults: list[str]) -> str:
    """The first faults, one a line, and how many follow."""
    more: Optional[str] = f"… and {len(faults) - MOST} more" if len(faults) > MOST else None
    return "\n".join([*faults[:MOST], *([more] if more else [])])
