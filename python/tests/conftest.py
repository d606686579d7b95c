"""What the tests share that needs no torch; models, rows and trainers are in ``training``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import pytest

from hft_surgery import binary

ROOT = Path(__file__).resolve().parents[2]
LLAMA = ROOT / "fixtures" / "llama"


def command(*args: Any) -> str:
    """Runs hft-surgery and gives its stdout."""
    return binary.run([str(arg) for arg in args])


@pytest.fixture
def fixtures() -> Path:
    return ROOT / "fixtures"
