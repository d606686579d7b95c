"""Plans: which tensors are trainable and which frozen."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

from .binary import run
from .errors import HFTError
from .in_memory import write_headers

StrPath = Union[str, "os.PathLike[str]"]
MARKER = '"format": "hft-surgery/plan"'


class Plan:
    """Every tensor of a checkpoint under ``trainable`` or ``frozen``, exactly once.

    Made by :meth:`draw` and :meth:`load`. ``text`` is the plan file, byte for byte what ``hft-surgery plan`` writes.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._value: dict[str, Any] = json.loads(text)

    @classmethod
    def draw(
        cls,
        checkpoint_or_model: Any,
        ratio: float = 0.5,
        strategy: str = "category",
        seed: int = 0,
        round: int = 0,
        *,
        balance: str = "count",
        embeddings: Optional[str] = None,
        lm_head: Optional[str] = None,
        norms: Optional[str] = None,
        train: Sequence[str] = (),
        freeze: Sequence[str] = (),
    ) -> Plan:
        """Draws a plan, as ``hft-surgery plan`` does with the options of these names.

        Args:
            checkpoint_or_model: the path of a checkpoint, or a model of transformers in memory. The plan of a model is
                that of the checkpoint which ``save_pretrained`` would write; no weight is read or copied.
            ratio: the share that is trainable, 0 to 1.
            strategy: ``category`` (the paper's), ``layer``, ``model``, ``random-tensor`` or ``explicit``.
            seed: the seed of the draw.
            round: the round of training; each draws anew.
            balance: whether the share counts matrices (``count``) or their parameters (``params``).
            embeddings: ``train``, ``freeze`` or ``select``, as are ``lm_head`` and ``norms``.
            lm_head: the output head.
            norms: the norms.
            train: globs of tensors that are trainable whatever is drawn.
            freeze: globs of tensors that are frozen whatever is drawn.

        Raises:
            HFTError: what the command refuses, and a model that is saved under other names than it has in memory.
        """
        options = [f"--strategy={strategy}", f"--balance={balance}", f"--seed={seed}", f"--round={round}"]
        if strategy != "explicit":
            options.append(f"--ratio={ratio!r}")
        policies = {"embeddings": embeddings, "lm-head": lm_head, "norms": norms}
        options += [f"--{name}={policy}" for name, policy in policies.items() if policy is not None]
        options += [f"--train={glob}" for glob in train] + [f"--freeze={glob}" for glob in freeze]
        with tempfile.TemporaryDirectory(prefix="hft-surgery-") as directory:
            if isinstance(checkpoint_or_model, (str, os.PathLike)):
                checkpoint = os.fspath(checkpoint_or_model)
            else:
                checkpoint = os.path.join(directory, "model")
                write_headers(checkpoint_or_model, checkpoint)
            out = os.path.join(directory, "plan.json")
            run(["plan", checkpoint, *options, "--out", out, "--json"])
            return cls(Path(out).read_text(encoding="utf-8"))

    @classmethod
    def load(cls, path: StrPath) -> Plan:
        """Reads a plan file, or the plan in the ``hft_surgery.json`` of a reset or a training run.

        Raises:
            HFTError: no plan, or one that lists a tensor twice, has an unknown key, and so on.
        """
        return cls(run(["plan", "show", os.fspath(path), "--json"]))

    def save(self, path: StrPath) -> None:
        """Writes the plan file, whole or not at all.

        Raises:
            HFTError: a file that is no plan stands there.
        """
        path = Path(path)
        if path.exists() and not (path.is_file() and MARKER in path.read_text(encoding="utf-8", errors="replace")):
            raise HFTError(f"{path}: already exists and is no plan", "choose another path, or remove it")
        write_whole(path, self.text)

    def complement(self) -> Plan:
        """The plan with trainable and frozen swapped."""
        with tempfile.TemporaryDirectory(prefix="hft-surgery-") as directory:
            path = os.path.join(directory, "plan.json")
            Path(path).write_text(self.text, encoding="utf-8")
            return Plan(run(["plan", "complement", path, "--json"]))

    def export(self, trainer: str) -> str:
        """The plan as the configuration of another trainer, as ``hft-surgery plan export --for`` writes it.

        Args:
            trainer: ``axolotl``, ``ms-swift``, ``torchtune``, ``llama-factory`` or ``regex``.

        Raises:
            HFTError: what the rule of that trainer cannot say.
        """
        with tempfile.TemporaryDirectory(prefix="hft-surgery-") as directory:
            path = os.path.join(directory, "plan.json")
            Path(path).write_text(self.text, encoding="utf-8")
            return run(["plan", "export", path, "--for", trainer])

    @property
    def trainable(self) -> list[str]:
        """The names of the trainable tensors, in natural order."""
        return list(self._value["trainable"])

    @property
    def frozen(self) -> list[str]:
        """The names of the frozen tensors, in natural order."""
        return list(self._value["frozen"])

    @property
    def seed(self) -> int:
        """The seed of the draw."""
        return int(self._value.get("seed", 0))

    @property
    def round(self) -> int:
        """The round of the draw."""
        return int(self._value.get("round", 0))

    @property
    def masked(self) -> bool:
        """Whether rows or elements of some tensors are chosen, which no trainer of PyTorch can carry out."""
        return self._value.get("mask") is not None

    def to_dict(self) -> dict[str, Any]:
        """The plan file as a value."""
        value: dict[str, Any] = json.loads(self.text)
        return value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._value == other._value

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        trainable, frozen = len(self._value["trainable"]), len(self._value["frozen"])
        return f"Plan(trainable={trainable}, frozen={frozen}, seed={self.seed}, round={self.round})"


def write_whole(path: Path, text: str) -> None:
    """Writes a file beside its place and moves it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False, encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    try:
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(file.name, 0o666 & ~mask)
        os.replace(file.name, path)
    except OSError:
        os.unlink(file.name)
        raise
