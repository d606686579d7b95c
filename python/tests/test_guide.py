"""The Python blocks of docs/guide/python.md run, in their order, in one directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from datasets import Dataset
from training import collate, rows

GUIDE = (ROOT / "docs/guide/python.md").read_text(encoding="utf-8")


def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixtures: Path, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"<!-- test: (\w+) -->\n```python\n(.*?)```", GUIDE, re.S)
    assert [name for name, _ in blocks] == ["trl", "proof", "plans", "rounds"]
    assert GUIDE.count("```python") == len(blocks) + 1  # the other one is the value of ENGINE
    space: dict[str, Any] = {
        "MODEL": str(fixtures / "base"),
        "rows": Dataset.from_list(rows(8, 200)),
        "collate": collate,
        "ENGINE": {"use_cpu": True, "report_to": [], "disable_tqdm": True},
    }
    settings = 'output_dir="run", use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,'
    for name, code in blocks:
        code = code.replace('output_dir="run",', settings)
        exec(compile(code, f"docs/guide/python.md: {name}", "exec"), space)
    assert "of 57 tensors moved" in capsys.readouterr().out
    assert (tmp_path / "run/rounds/2/metrics.json").is_file() and (tmp_path / "rounds/rounds/2/metrics.json").is_file()
    assert len(space["digests"]) == 57
