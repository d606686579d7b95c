"""Plans are those of the command, byte for byte, from a checkpoint and from a model in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import LLAMA, command
from training import load

from hft_surgery import HFTError, Plan, apply, check_optimizer, diff, reset, verify


def causal(path: Path) -> bool:
    """Whether a directory holds a model of text alone."""
    config = path / "config.json"
    return config.is_file() and "text_config" not in json.loads(config.read_text())


@pytest.mark.parametrize("family", sorted(path.name for path in LLAMA.iterdir() if causal(path)))
def test_a_model_in_memory_has_the_plan_of_its_checkpoint(family: str, tmp_path: Path) -> None:
    model = load(family)
    model.save_pretrained(tmp_path / "saved")
    options = dict(ratio=0.4, seed=3, round=2, norms="select", train=["*.layers.1.mlp.*"])
    of_model = Plan.draw(model, **options)
    assert of_model.text == Plan.draw(LLAMA / family, **options).text == Plan.draw(tmp_path / "saved", **options).text
    flags = "--ratio 0.4 --seed 3 --round 2 --norms select --train *.layers.1.mlp.* --out".split()
    command("plan", LLAMA / family, *flags, tmp_path / "plan.json")
    assert of_model.text == (tmp_path / "plan.json").read_text()
    done = apply(model, of_model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(done.trainable) == set(of_model.trainable)


def test_wrappers_are_left_out_of_names() -> None:
    plan = Plan.draw(LLAMA / "llama3")

    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

    wrapped = Wrapper(torch.compile(load()))
    done = apply(wrapped, plan)
    assert set(done.trainable) == set(plan.trainable)
    assert done.tied == (("model.embed_tokens.weight", "lm_head.weight"),)


def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(tmp_path: Path, fixtures: Path) -> None:
    model = load()
    plan = Plan.draw(LLAMA / "llama3")
    cases = {
        r"tensor `model.layers.3": Plan.draw(fixtures / "base"),
        "row or element mask": Plan(masked(tmp_path)),
        "trains no parameter": Plan.draw(LLAMA / "llama3", strategy="explicit", freeze=["*"]),
        r"tensor `model.norm.weight`: in the model, but neither": Plan(
            plan.text.replace('"model.norm.weight"', '"lm_head.weight"')
        ),
    }
    for message, wrong in cases.items():
        with pytest.raises(HFTError, match=message):
            apply(model, wrong)
        assert all(p.requires_grad for p in model.parameters())
    value = plan.to_dict()
    other = "frozen" if "model.embed_tokens.weight" in value["trainable"] else "trainable"
    value[other].append("lm_head.weight")
    with pytest.raises(HFTError, match=r"tied with `lm_head\.weight`, but the two are in different lists"):
        apply(model, Plan(json.dumps(value)))


def masked(tmp_path: Path) -> str:
    command("plan", LLAMA / "llama3", "--granularity", "row", "--out", tmp_path / "masked.json")
    return (tmp_path / "masked.json").read_text()


def test_optimizers_are_checked() -> None:
    model, plan = load(), Plan.draw(LLAMA / "llama3")
    named = dict(model.named_parameters())
    on = [named[name] for name in plan.trainable]
    apply(model, plan)
    check_optimizer(model, torch.optim.AdamW(on), plan)
    groups = {
        "parameter group 1 of the optimizer is empty": [{"params": on}, {"params": []}],
        f"`{plan.frozen[0]}`: frozen by the plan, but in the optimizer": [{"params": [*on, named[plan.frozen[0]]]}],
        f"`{plan.trainable[-1]}`: trainable in the plan, but in no parameter group": [{"params": on[:-1]}],
        "not one of the model": [{"params": [*on, torch.nn.Parameter(torch.zeros(1))]}],
    }
    for message, faulty in groups.items():
        with pytest.raises(HFTError, match=message):
            check_optimizer(model, torch.optim.AdamW(faulty), plan)


def test_a_model_that_is_saved_under_other_names_is_refused() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    small = dict(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vocab_size=16
    )
    model = MixtralForCausalLM(MixtralConfig(num_local_experts=2, **small))
    with pytest.raises(HFTError, match="save_pretrained stores this model under other names"):
        Plan.draw(model)


def test_reports_as_tables(fixtures: Path) -> None:
    report = diff(fixtures / "base", fixtures / "tuned", only=["*.norm*"])
    table = report.to_pandas()
    assert len(table) == len(report["tensors"]) and {"name", "rel_l2"} <= set(table.columns)
    assert "attention" in set(reset(fixtures / "base", fixtures / "tuned").to_pandas()["category"])
    assert len(verify(fixtures / "base").to_pandas()) == 57
