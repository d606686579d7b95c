"""Plans are those of the command, byte for byte, from a checkpoint and from a model in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import LLAMA, command, load

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


def test_commands(tmp_path: Path, fixtures: Path) -> None:
    report = diff(fixtures / "base", fixtures / "tuned", only=["*.norm*"])
    assert not report["identical"] and {t["category"] for t in report["tensors"]} == {"norm"}
    table = report.to_pandas()
    assert len(table) == len(report["tensors"]) and {"name", "rel_l2"} <= set(table.columns)
    plan = Plan.draw(fixtures / "tuned", ratio=0.7)
    done = reset(fixtures / "base", fixtures / "tuned", tmp_path / "half", plan=plan)
    assert done["plan"] == plan.to_dict() and set(reset(fixtures / "base", fixtures / "tuned").to_pandas()["category"])
    checked = diff(fixtures / "base", tmp_path / "half", plan=plan)
    assert checked["plan"]["holds"]
    sums = verify(tmp_path / "half")
    assert len(sums.to_pandas()) == 57
    command("verify", tmp_path / "half", "--write-manifest", tmp_path / "manifest.json")
    assert verify(tmp_path / "half", manifest=tmp_path / "manifest.json")["mismatches"] == []
    assert verify(fixtures / "base", manifest=tmp_path / "manifest.json")["mismatches"]
    with pytest.raises(HFTError, match="already exists"):
        reset(fixtures / "base", fixtures / "tuned", tmp_path / "half")
