"""Exports of plans, judged by the code of the trainers that read them.

The wheels of the trainers lie in $HFT_TRAINER_WHEELS; run_tests.sh downloads them. Only the functions that match names are taken
from them, without the packages that they import.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from conftest import LLAMA
from training import load

from hft_surgery import HFTError, Plan

WHEELS = Path(os.environ.get("HFT_TRAINER_WHEELS", "nowhere"))
pytestmark = pytest.mark.skipif(not WHEELS.is_dir(), reason="HFT_TRAINER_WHEELS is not set")


def taken_from(package: str, file: str, *names: str) -> dict[str, Any]:
    """Functions, classes and constants of a file in a wheel."""
    (wheel,) = WHEELS.glob(f"{package}-*.whl")
    tree = ast.parse(zipfile.ZipFile(wheel).read(file))
    wanted = []
    for node in tree.body:
        targets = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        if getattr(node, "name", None) in names or set(targets) & set(names):
            wanted.append(node)
    assert len(wanted) == len(names), f"{file}: {names}"
    import typing

    space: dict[str, Any] = {
        **vars(typing), "re": re, "nn": torch.nn, "torch": torch, "np": numpy, "LOG": logging.getLogger(), "logger": Logger(),
        "is_main_process": lambda: True, "COMPOSITE_MODELS": {}, "get_forbidden_modules": lambda *args: set(),
    }  # fmt: skip
    exec(compile(ast.Module(wanted, []), file, "exec"), space)
    return space


class Logger:
    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def plans() -> list[Plan]:
    drawn = [Plan.draw(LLAMA / "llama-bias", round=n, strategy="random-tensor", norms="select") for n in range(3)]
    return [*drawn, drawn[0].complement()]


def trained(model: Any) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_axolotl() -> None:
    axolotl = taken_from(
        "axolotl", "axolotl/utils/freeze.py", "freeze_layers_except", "LayerNamePattern", "_merge_ranges", "_invert_ranges",
        "_create_freeze_parameters_hook",
    )  # fmt: skip
    for plan in plans():
        model = load("llama-bias")
        axolotl["freeze_layers_except"](model, yaml.safe_load(plan.export("axolotl"))["unfrozen_parameters"])
        assert trained(model) == set(plan.trainable)


def test_ms_swift() -> None:
    swift = taken_from("ms_swift", "swift/utils/transformers_utils.py", "freeze_parameters", "activate_parameters")
    for plan in plans():
        model, terms = load("llama-bias"), yaml.safe_load(plan.export("ms-swift"))
        model.requires_grad_(True)
        swift["freeze_parameters"](model, 0.0, [], terms["freeze_parameters_regex"])
        swift["activate_parameters"](model, [], terms["trainable_parameters_regex"])
        assert trained(model) == set(plan.trainable) and terms["tuner_type"] == "full"


@pytest.mark.parametrize(
    "globs",
    [
        ["*.layers.[12].self_attn.*"],
        ["*.layers.0.*", "lm_head*"],
        ["*.layers.2.mlp.*", "*.layers.2.input_layernorm*"],
        ["*.layers.*"],
    ],
)
def test_llama_factory(globs: list[str]) -> None:
    factory = taken_from("llamafactory", "llamafactory/model/adapter.py", "_setup_freeze_tuning")
    plan = Plan.draw(LLAMA / "llama-bias", strategy="explicit", train=globs)
    terms = yaml.safe_load(plan.export("llama-factory"))

    class Arguments:
        use_llama_pro = False
        freeze_multi_modal_projector = True
        freeze_trainable_layers = terms["freeze_trainable_layers"]
        freeze_trainable_modules = terms["freeze_trainable_modules"].split(",")
        freeze_extra_modules = terms.get("freeze_extra_modules", "").split(",") if "freeze_extra_modules" in terms else None

    model = load("llama-bias")
    factory["_setup_freeze_tuning"](model, Arguments(), True, False)
    assert trained(model) == set(plan.trainable) and terms["finetuning_type"] == "freeze"


def test_llama_factory_refuses_what_it_cannot_say() -> None:
    with pytest.raises(HFTError, match="LLaMA-Factory freezes whole modules"):
        plans()[0].export("llama-factory")


@pytest.mark.parametrize(
    ("family", "file"),
    [("llama2", "torchtune/models/convert_weights.py"), ("qwen2", "torchtune/models/qwen2/_convert_weights.py")],
)
def test_torchtune(family: str, file: str) -> None:
    names = taken_from("torchtune", file, "_FROM_HF")["_FROM_HF"]
    renamed = taken_from("torchtune", "torchtune/models/convert_weights.py", "get_mapped_key")["get_mapped_key"]
    peft = taken_from("torchtune", "torchtune/modules/peft/_utils.py", "set_trainable_params")
    plan = Plan.draw(LLAMA / family)

    class Model(torch.nn.Module):
        def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
            return ((name, parameters[name]) for name in parameters)

    parameters = {renamed(name, names): torch.nn.Parameter(torch.zeros(1)) for name in [*plan.trainable, *plan.frozen]}
    peft["set_trainable_params"](Model(), set(yaml.safe_load(plan.export("torchtune"))["trainable"]))
    assert trained(Model()) == {renamed(name, names) for name in plan.trainable}
