"""A model in memory as the headers of its checkpoint: names, types and shapes without a weight."""

from __future__ import annotations

import json
import os
import struct
from typing import TYPE_CHECKING, Any, Optional

from .errors import HFTError

if TYPE_CHECKING:
    import torch

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts that torch.compile, FSDP and activation checkpointing put into the names of parameters."""
DTYPES = {
    "bool": ("BOOL", 1), "uint8": ("U8", 1), "int8": ("I8", 1), "int16": ("I16", 2), "int32": ("I32", 4),
    "int64": ("I64", 8), "float16": ("F16", 2), "bfloat16": ("BF16", 2), "float32": ("F32", 4), "float64": ("F64", 8),
    "float8_e4m3fn": ("F8_E4M3", 1), "float8_e5m2": ("F8_E5M2", 1),
}  # fmt: skip


def plain_name(name: str) -> str:
    """The name of a parameter without what wrappers put into it: ``module._orig_mod.model.norm.weight`` is
    ``model.norm.weight``."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """All parameters by their plain names, tied ones under each of their names."""
    return {plain_name(name): p for name, p in model.named_parameters(remove_duplicate=False)}


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint of the model holds: its parameters, tied ones once, and its persistent buffers."""
    named = parameters(model)
    # The names that save_pretrained leaves out, where transformers says them.
    tied = {plain_name(name) for name in getattr(model, "all_tied_weights_keys", None) or {}}
    kept: dict[int, str] = {}
    for name in sorted(named, key=lambda name: name in tied):
        kept.setdefault(id(named[name]), name)
    names = set(kept.values())
    held: dict[str, torch.Tensor] = {name: p for name, p in named.items() if name in names}
    for prefix, module in model.named_modules():
        left_out: set[str] = getattr(module, "_non_persistent_buffers_set", set())
        for name, buffer in module.named_buffers(recurse=False):
            if name not in left_out:
                held[plain_name(f"{prefix}.{name}" if prefix else name)] = buffer
    return held


def tied_names(model: torch.nn.Module) -> set[str]:
    """The names of tied parameters that a checkpoint of the model leaves out, as ``save_pretrained`` does."""
    return set(parameters(model)) - set(tensors(model))


def whole_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape of the whole tensor, also where DeepSpeed ZeRO-3 holds a part of it."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def write_headers(model: Any, directory: str) -> None:
    """Writes ``config.json`` and a safetensors file whose header is that of the saved model. Its data is a hole, which takes
    no space on the disk.

    Raises:
        HFTError: a model without a configuration, a type that safetensors lacks, or names that saving changes.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(model, "named_parameters") or not hasattr(config, "to_json_string"):
        kind = type(model).__name__
        raise HFTError(f"got {kind}, expected the path of a checkpoint or a model of transformers")
    if hasattr(model, "peft_config"):
        raise HFTError("got a model with a PEFT adapter: plans are of the model's own tensors", "give the base model")
    held = tensors(model)
    _check_saved_names(model, held)
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in held.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise HFTError(f"tensor `{name}`: no type of safetensors for {tensor.dtype}")
        shape = whole_shape(tensor)
        size = DTYPES[dtype][1]
        for length in shape:
            size *= length
        header[name] = {"dtype": DTYPES[dtype][0], "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    described = json.loads(config.to_json_string(use_diff=False))
    described["architectures"] = [type(model).__name__.removeprefix("FSDP")]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    os.makedirs(directory)
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as file:
        json.dump(described, file)
    with open(os.path.join(directory, "model.safetensors"), "wb") as weights:
        weights.write(struct.pack("<Q", len(text)) + text)
        weights.truncate(8 + len(text) + end)


def _check_saved_names(model: Any, held: dict[str, torch.Tensor]) -> None:
    """Refuses models that transformers stores under other names than they have in memory, such as stacked experts."""
    import torch

    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before transformers 5 names were saved as they are
        return
    empty = {name: torch.empty(whole_shape(tensor), dtype=tensor.dtype, device="meta") for name, tensor in held.items()}
    saved: Optional[dict[str, torch.Tensor]] = revert_weight_conversion(model, dict(empty))
    changed = sorted(set(empty) ^ set(saved or {}))
    if changed:
        raise HFTError(
            f"tensor `{changed[0]}`: save_pretrained stores this model under other names than it has in memory "
            f"({len(changed)} differ)",
            "no plan holds for both",
        )
