"""PEFT's adapters, put in after the surgery: trained, saved, loaded, switched off, merged and unloaded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import revsurgeon as rs
from tests.composition.agreement import assert_agree, both_arithmetics, gradients_of, loss_of, rewired
from tests.gradients import call

TARGETS = {
    "timm vit": ["qkv", "proj", "fc1"],
    "transformers vit": ["q_proj", "v_proj", "fc2"],
    "transformers bert": ["query", "value", "dense"],
}
every_network = pytest.mark.parametrize("name", TARGETS)


def adapted(name: str, arithmetic: str, **options: Any) -> tuple[PeftModel, Any]:
    network, inputs = rewired(name, arithmetic)
    config = LoraConfig(
        r=2, target_modules=TARGETS[name], lora_dropout=0.2, init_lora_weights=False, **options
    )
    torch.manual_seed(1)
    return get_peft_model(network, config).train(), inputs


def trained(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


@both_arithmetics
@every_network
def test_lora_put_in_after_the_surgery_gets_the_stored_gradients_and_the_base_none(
    arithmetic: str, name: str
) -> None:
    network, inputs = adapted(name, arithmetic)
    assert len(rs.chains(network)) == 1
    assert all("lora_" in parameter for parameter in trained(network))
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic, wanted=trained(network))
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)


@both_arithmetics
def test_dora_and_a_trained_head_get_the_stored_gradients(arithmetic: str) -> None:
    network, inputs = adapted("timm vit", arithmetic, use_dora=True, modules_to_save=["head"])
    assert any("magnitude" in name for name in trained(network))
    assert any("head" in name for name in trained(network))
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic, wanted=trained(network))


@both_arithmetics
@every_network
def test_a_merged_and_unloaded_adapter_leaves_a_rewired_network_with_the_same_outputs(
    arithmetic: str, name: str
) -> None:
    network, inputs = adapted(name, arithmetic)
    with torch.no_grad():
        expected = call(network.eval(), inputs)
        merged = network.merge_and_unload()
        # W x + B (A x) and (W + B A) x differ by roundings alone.
        torch.testing.assert_close(call(merged, inputs), expected, rtol=1e-4, atol=1e-4)
    merged.train().requires_grad_(True)
    assert not any("lora" in key for key in merged.state_dict())
    assert_agree(merged, lambda: loss_of(merged, inputs).backward(), arithmetic)


@both_arithmetics
def test_an_adapter_that_is_switched_off_leaves_the_base_network_bit_for_bit(arithmetic: str) -> None:
    base, inputs = rewired("timm vit", arithmetic, training=False)
    network = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)
    )
    with torch.no_grad():
        assert not torch.equal(network.eval()(*inputs), base(*inputs))
        with network.disable_adapter():
            assert torch.equal(network(*inputs), base(*inputs))


@both_arithmetics
def test_a_saved_adapter_loads_onto_another_rewired_network(arithmetic: str, tmp_path: Path) -> None:
    network, inputs = adapted("timm vit", arithmetic)
    network.save_pretrained(tmp_path)
    base, _ = rewired("timm vit", arithmetic)
    loaded = PeftModel.from_pretrained(base, tmp_path, is_trainable=True).train()
    found = [
        gradients_of(n, lambda n=n: loss_of(n, inputs).backward(), wanted=trained(n))
        for n in (network, loaded)
    ]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    assert_agree(loaded, lambda: loss_of(loaded, inputs).backward(), arithmetic, wanted=trained(loaded))
