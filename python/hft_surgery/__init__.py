"""Half Fine-Tuning (arXiv:2404.18466) in PyTorch: plans, the trainers of transformers and TRL, and bit-exact proof.

    >>> from hft_surgery import Plan, apply
    >>> plan = Plan.draw("llama", ratio=0.5)
    >>> apply(model, plan)

Plans, diffs and resets are made by the program ``hft-surgery`` that is installed with this package. torch and transformers
are imported by the parts that need them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .applied import Applied, apply, check_optimizer
from .commands import Report, diff, reset, verify
from .errors import HFTError
from .plan import Plan

if TYPE_CHECKING:
    from .callback import HFTCallback
    from .rounds import Round, run_rounds

__all__ = [
    "Applied",
    "HFTCallback",
    "HFTError",
    "Plan",
    "Report",
    "Round",
    "apply",
    "check_optimizer",
    "diff",
    "reset",
    "run_rounds",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Imports what needs transformers when it is asked for."""
    modules = {"HFTCallback": "callback", "Round": "rounds", "run_rounds": "rounds"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{modules[name]}", __name__), name)
    except ModuleNotFoundError as error:
        text = f'hft_surgery.{name} needs {error.name}: pip install "hft-surgery[train]"'
        raise ModuleNotFoundError(text, name=error.name) from error
