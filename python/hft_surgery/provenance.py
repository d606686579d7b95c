"""``hft_surgery.json``: how a checkpoint was made, as ``hft-surgery`` writes and reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

from .binary import run, version
from .errors import HFTError
from .plan import Plan, write_whole

FILE_NAME = "hft_surgery.json"


def describe_input(path: Optional[str]) -> list[dict[str, Any]]:
    """The entry of the checkpoint that training starts from: its path and the digest of its headers."""
    if not path:
        return []
    entry: dict[str, Any] = {"role": "model", "path": path}
    try:
        entry["header_sha256"] = json.loads(run(["inspect", path, "--json"]))["header_sha256"]
    except HFTError:
        # A model that was not read from safetensors has no headers; its path is all that is known.
        pass
    return [entry]


def write(directory: Path, plan: Plan, options: dict[str, Any], inputs: list[dict[str, Any]]) -> None:
    """Writes the file into a checkpoint that a trainer saved. ``diff --plan`` and ``reset --plan`` read the plan in it."""
    document = {
        "format": "hft-surgery/provenance",
        "version": 1,
        "tool": f"hft-surgery {version() or 'from source'} (Python)",
        "command": "train",
        "options": options,
        "seed": plan.seed,
        "inputs": inputs,
        "plan": plan.to_dict(),
    }
    write_whole(directory / FILE_NAME, json.dumps(document, indent=2) + "\n")


def read(directory: Path) -> dict[str, Any]:
    """The file in a checkpoint of a trainer.

    Raises:
        HFTError: it is missing or is no provenance.
    """
    path = directory / FILE_NAME
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HFTError(
            f"{path}: missing: this checkpoint was not saved by a run with HFTCallback",
            "resume from a checkpoint that was, or train without resuming",
        ) from None
    except ValueError as error:
        raise HFTError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != "hft-surgery/provenance":
        raise HFTError(f"{path}: not a provenance of hft-surgery")
    return document
