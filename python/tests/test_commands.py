"""What needs no torch: plans as files, the commands, and how the program is found and heard."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import LLAMA, command

from hft_surgery import HFTError, Plan, binary, diff, reset, verify


def test_files(tmp_path: Path, fixtures: Path) -> None:
    plan = Plan.draw(fixtures / "base", seed=5)
    plan.save(tmp_path / "plan.json")
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan != plan.complement()
    assert (tmp_path / "plan.json").read_text() == plan.text
    assert plan.complement().trainable == plan.frozen and plan.seed == 5
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(HFTError, match="already exists and is no plan"):
        plan.save(tmp_path / "notes.txt")
    with pytest.raises(HFTError, match="ratio"):
        Plan.draw(fixtures / "base", ratio=1.5)
    with pytest.raises(HFTError) as raised:
        Plan.draw("nobody/nothing")
    assert "no such file or directory" in raised.value.message and "hf download" in str(raised.value.hint)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, hft_surgery; assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_commands(tmp_path: Path, fixtures: Path) -> None:
    report = diff(fixtures / "base", fixtures / "tuned", only=["*.norm*"])
    assert not report["identical"] and {t["category"] for t in report["tensors"]} == {"norm"}
    plan = Plan.draw(fixtures / "tuned", ratio=0.7)
    done = reset(fixtures / "base", fixtures / "tuned", tmp_path / "half", plan=plan)
    assert done["plan"] == plan.to_dict()
    checked = diff(fixtures / "base", tmp_path / "half", plan=plan)
    assert checked["plan"]["holds"]
    assert len(verify(tmp_path / "half")["tensors"]) == 57
    command("verify", tmp_path / "half", "--write-manifest", tmp_path / "manifest.json")
    assert verify(tmp_path / "half", manifest=tmp_path / "manifest.json")["mismatches"] == []
    assert verify(fixtures / "base", manifest=tmp_path / "manifest.json")["mismatches"]
    with pytest.raises(HFTError, match="already exists"):
        reset(fixtures / "base", fixtures / "tuned", tmp_path / "half")


def test_a_plan_in_the_words_of_other_trainers() -> None:
    plan = Plan.draw(LLAMA / "llama3", ratio=0.5, train=["*.norm.weight"])
    assert plan.export("axolotl").splitlines()[-1].startswith("- ^model.norm.weight$")
    with pytest.raises(HFTError, match="LLaMA-Factory freezes whole modules"):
        plan.export("llama-factory")


def test_a_warning_of_the_program_is_one_of_python(fixtures: Path) -> None:
    plan = Plan.draw(fixtures / "base")
    with pytest.warns(UserWarning, match="1 of 1 trainable tensors did not move"):
        found = diff(fixtures / "base", fixtures / "base", plan=plan, only=plan.trainable[:1])
    assert found["plan"]["holds"] and found["plan"]["unmoved"] == plan.trainable[:1]


def test_what_needs_transformers_says_how_to_install_it() -> None:
    code = "import sys; sys.modules['transformers'] = None; from hft_surgery import HFTCallback"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "hft-surgery[train]"' in done.stderr


def test_an_error_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(HFTError("what is wrong", "what to do")))
    assert (error.message, error.hint, str(error)) == ("what is wrong", "what to do", "what is wrong\nhint: what to do")


@pytest.fixture
def anew() -> Iterator[None]:
    """The program is looked for anew, in the test and after it."""
    binary.find.cache_clear()
    yield
    binary.find.cache_clear()


def test_the_program_is_found_and_is_of_the_version_of_the_package(
    anew: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "hft-surgery"
    other.write_text("#!/bin/sh\necho hft-surgery 9.9.9\n")
    other.chmod(0o755)
    monkeypatch.setenv(binary.VARIABLE, str(other))
    monkeypatch.setattr(binary, "version", lambda: "0.1.0")
    with pytest.raises(HFTError, match=r"hft-surgery: got version 9\.9\.9, expected 0\.1\.0, that of the Python package"):
        binary.find()
    monkeypatch.setattr(binary, "version", lambda: None)
    assert binary.find() == str(other)
    binary.find.cache_clear()
    other.chmod(0o644)
    monkeypatch.setattr(binary.sysconfig, "get_path", lambda *_: str(tmp_path))
    monkeypatch.setattr(binary.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(HFTError, match="the program hft-surgery was not found"):
        binary.find()
