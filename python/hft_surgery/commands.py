"""Commands on checkpoints, with their JSON as a dict."""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

from .binary import run
from .plan import Plan, StrPath


class Report(dict[str, Any]):
    """The JSON of a command, as ``--json`` prints it."""

    def to_pandas(self) -> Any:
        """The tensors as a ``pandas.DataFrame``, one row each; the categories where the command lists no tensors.

        Raises:
            ImportError: pandas is not installed.
        """
        pandas = importlib.import_module("pandas")
        tensors = self.get("tensors")
        if isinstance(tensors, list):
            return pandas.json_normalize(tensors)
        if isinstance(tensors, dict):
            rows = [{"name": name, "sha256": sha256} for name, sha256 in tensors.items()]
            return pandas.DataFrame(rows, columns=["name", "sha256"])
        rows = [{"category": name, **counts} for name, counts in self["categories"].items()]
        return pandas.DataFrame(rows)


def diff(a: StrPath, b: StrPath, *, plan: Optional[Union[Plan, StrPath]] = None, only: Sequence[str] = ()) -> Report:
    """What changed from checkpoint ``a`` to checkpoint ``b``, as ``hft-surgery diff``.

    Args:
        a: the first checkpoint.
        b: the second; differences are b - a.
        plan: check that what this plan freezes is bit-identical. The report then has ``plan`` with what was found.
        only: globs of the names that are compared.

    Raises:
        HFTError: what the command refuses. A difference is no error, nor is a broken plan.
    """
    with _plan_file(plan) as file:
        given = [] if file is None else ["--plan", file]
        only_these = [f"--only={glob}" for glob in only]
        return Report(json.loads(run(["diff", os.fspath(a), os.fspath(b), *given, *only_these, "--json"], accept=(0, 1))))


def reset(
    base: StrPath,
    tuned: StrPath,
    out: Optional[StrPath] = None,
    *,
    ratio: Optional[float] = None,
    plan: Optional[Union[Plan, StrPath]] = None,
    strategy: Optional[str] = None,
    seed: Optional[int] = None,
    round: Optional[int] = None,
    force: bool = False,
    arguments: Sequence[str] = (),
) -> Report:
    """Puts a share of a fine-tune back to its base, as ``hft-surgery reset``.

    Args:
        base: the pre-trained checkpoint.
        tuned: the checkpoint that was fine-tuned from it.
        out: the directory to write; None shows what would be done.
        ratio: the share that returns to base, 0.5 unless given. (For plans it is the share that is trainable.)
        plan: return what this plan freezes, instead of drawing.
        strategy: how tensors are drawn.
        seed: the seed of the draw.
        round: the round of the draw.
        force: replace a checkpoint at ``out``.
        arguments: further arguments of the command.

    Raises:
        HFTError: what the command refuses.
    """
    with _plan_file(plan) as file:
        options = {"ratio": ratio, "plan": file, "strategy": strategy, "seed": seed, "round": round}
        given = [f"--{name}={value}" for name, value in options.items() if value is not None]
        where = ["--dry-run"] if out is None else [f"--out={os.fspath(out)}"]
        where += ["--force"] if force else []
        sides = [f"--base={os.fspath(base)}", f"--tuned={os.fspath(tuned)}"]
        return Report(json.loads(run(["reset", *sides, *where, *given, *arguments, "--json"])))


def verify(checkpoint: StrPath, *, manifest: Optional[StrPath] = None) -> Report:
    """The SHA-256 of every file and tensor, as ``hft-surgery verify``.

    Args:
        checkpoint: the checkpoint.
        manifest: a manifest to compare with; ``mismatches`` of the report lists what differs.

    Raises:
        HFTError: what the command refuses. A mismatch is no error.
    """
    given = [] if manifest is None else ["--manifest", os.fspath(manifest)]
    return Report(json.loads(run(["verify", os.fspath(checkpoint), *given, "--json"], accept=(0, 1))))


class _plan_file:
    """A plan as a file for the time of a command."""

    def __init__(self, plan: Optional[Union[Plan, StrPath]]) -> None:
        self.plan = plan
        self.directory: Optional[tempfile.TemporaryDirectory[str]] = None

    def __enter__(self) -> Optional[str]:
        if not isinstance(self.plan, Plan):
            return None if self.plan is None else os.fspath(self.plan)
        self.directory = tempfile.TemporaryDirectory(prefix="hft-surgery-")
        path = os.path.join(self.directory.name, "plan.json")
        Path(path).write_text(self.plan.text, encoding="utf-8")
        return path

    def __exit__(self, *_: object) -> None:
        if self.directory is not None:
            self.directory.cleanup()
