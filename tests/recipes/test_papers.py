"""The systems of the papers: each recipe rewires its kind of network, and Re2 computes what Re2TAL prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import revsurgeon as rs
from revsurgeon.recipes import load_recipe
from tests.gradients import assert_identical, call, step
from tests.models import (
    Inputs,
    hf_videomae,
    seeded,
    timm_resnet,
    timm_vit,
    torchvision_mvit,
    torchvision_swin3d,
    two_pathways,
)
from tests.recipes import systems

# recipe: (a small network of its kind, segments of its chains)
SYSTEMS: dict[str, tuple[Callable[[], tuple[nn.Module, Inputs]], list[int]]] = {
    "video-swin-tiny": (torchvision_swin3d, [4, 4]),
    "videomae-small": (hf_videomae, [6]),
    "vit-small": (timm_vit, [6]),
    "resnet-50": (timm_resnet, [2, 1, 1, 1]),
    "mvit-v2-small": (torchvision_mvit, [2, 2]),
    "slowfast-50": (systems.slowfast, [2, 2, 3, 3, 5, 5, 2, 2]),  # slow and fast, stage by stage
    "slowfast-101": (systems.slowfast_101, [2, 2, 3, 3, 22, 22, 2, 2]),
    "pix4point-vit-small": (systems.point_vit, [6]),
    # Four stages of the backbone; behind them two layers of the decoder that take queries from each other.
    "mask2former-swin-tiny": (systems.mask2former_swin, [4, 2, 4, 2, 6]),
    "swin-tiny-detector": (systems.deformable_detr_swin, [4, 4, 2]),
}
SLOW = {"slowfast-50", "slowfast-101", "mask2former-swin-tiny", "swin-tiny-detector"}

# What is the same surgery on a larger network, or on other weights.
LIKE = {
    "video-swin-small": "video-swin-tiny",
    "video-swin-base": "video-swin-small",
    "videomae-base": "videomae-small",
    "vit-mae-base": "vit-small",
    "slowfast-101": "resnet-50",
    "slowfast-50": "slowfast-101",
    "pix4point-vit-small": "vit-small",
    "mask2former-swin-tiny": "video-swin-tiny",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SYSTEMS]
)
def test_a_recipe_rewires_its_kind_of_network_with_exact_gradients(name: str) -> None:
    make, segments = SYSTEMS[name]
    network, inputs = seeded(make)
    recipe = load_recipe(name)
    rs.rewire(network, example_inputs=_copied(inputs), recipe=recipe, arithmetic="exact")
    assert [sum(chain.segments) for chain in rs.chains(network)] == segments
    assert rs.get_coefficients(network) == (recipe.start.alpha, recipe.start.beta)
    reversible = step(network.train(), _copied(inputs))
    assert_identical(reversible, step(network, _copied(inputs), inside=rs.stored_activations(network)))


def _copied(inputs: Inputs) -> Any:
    """With lists of their own, because some networks write into them."""
    return pytree.tree_map(lambda leaf: leaf, inputs)


def test_pathways_in_a_list_that_the_network_writes_into_are_chains_of_their_own() -> None:
    network, inputs = seeded(two_pathways)
    rs.rewire(network, example_inputs=inputs, recipe="slowfast-50", arithmetic="exact")
    # Nothing comes between the fast pathway's stages.
    assert [sum(chain.segments) for chain in rs.chains(network)] == [1, 2, 1]
    reversible = step(network.train(), _copied(inputs))
    assert_identical(reversible, step(network, _copied(inputs), inside=rs.stored_activations(network)))


def test_a_user_module_with_its_own_tokeniser_is_converted_and_trains_exactly(tmp_path: Path) -> None:
    source = "python:tests.recipes.systems:point_vit"
    path = rs.convert(source, recipe="pix4point-vit-small", arithmetic="exact", output=tmp_path / "points")
    network, inputs = rs.load(path, allow_python=True), systems.point_vit()[1]
    (chain,) = rs.chains(network)
    assert (chain.name, sum(chain.segments)) == ("blocks", 6)
    reversible = step(network.train(), inputs)
    assert_identical(reversible, step(network, inputs, inside=rs.stored_activations(network)))


def test_a_detectors_features_are_its_backbones_chains_and_the_source_networks_at_1_0() -> None:
    network, inputs = seeded(systems.deformable_detr_swin)
    backbone = network.get_submodule("model.backbone.model")

    def features() -> list[torch.Tensor]:
        with torch.no_grad():
            return list(backbone.eval()(inputs["pixel_values"]).feature_maps)

    expected = features()
    rs.rewire(network, example_inputs=inputs, recipe="swin-tiny-detector", arithmetic="exact")
    assert all("backbone" in chain.name for chain in rs.chains(network))
    rs.set_coefficients(network, 1.0, 0.0)
    assert all(map(torch.equal, features(), expected))
    rs.set_coefficients(network, 0.9, 0.1)  # every resolution is read from a chain
    assert not any(map(torch.equal, features(), expected))


@pytest.mark.parametrize(("name", "other"), LIKE.items())
def test_a_larger_network_of_a_kind_has_the_same_recipe(name: str, other: str) -> None:
    own = {"name", "source", "description"}
    assert load_recipe(name).model_dump(exclude=own) == load_recipe(other).model_dump(exclude=own)


@pytest.mark.parametrize("name", [name for name in {**SYSTEMS, **LIKE} if load_recipe(name).source])
def test_a_recipes_source_is_written_as_the_command_line_takes_it(name: str) -> None:
    import timm
    import torchvision

    source = load_recipe(name).source
    assert source is not None
    library, colon, model = source.partition(":")
    if library == "timm":
        assert timm.is_model(model)
    elif library == "torchvision":
        assert model in torchvision.models.list_models()
    else:
        assert (colon, source.count("/")) == ("", 1)


@pytest.mark.parametrize("name", ["resnet", "video swin", "slowfast"])
def test_re2_computes_the_equations_of_re2tal(name: str) -> None:
    """y_0 = x_0; x_i = relu(F_i(x_{i-1})) + y_{i-1}; y_i = x_{i-1}; behind the stage the streams' mean.

    The relu of a bottleneck belongs to its branch, and the skip moves to the next module. Of a transformer's
    block, attention and MLP are a module each.
    """
    make, equations = {
        "resnet": (timm_resnet, _re2tal_resnet),
        "video swin": (torchvision_swin3d, _re2tal_swin),
        "slowfast": (systems.slowfast, _re2tal_slowfast),
    }[name]
    network, inputs = seeded(make)
    rs.rewire(network, mode="re2", example_inputs=_copied(inputs))
    for chain in rs.chains(network):
        chain.merge = "normalized"
    network.eval()
    with torch.no_grad():
        found = call(network, _copied(inputs))
        expected = equations(network, *_copied(inputs))
    # Sums of two terms in another order, through as many modules; each rounds once.
    assert torch.allclose(
        found, expected, rtol=0, atol=100 * torch.finfo(torch.float32).eps * float(found.abs().max())
    )


def _re2tal_resnet(network: Any, images: torch.Tensor) -> torch.Tensor:
    x = network.maxpool(network.act1(network.bn1(network.conv1(images))))
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = stage[0](x)  # changes the shape: not a part of the reversible stage
        y = x
        for block in stage[1:]:
            branch = block.act1(block.bn1(block.conv1(x)))
            branch = block.act2(block.bn2(block.conv2(branch)))
            x, y = block.act3(block.bn3(block.conv3(branch))) + y, x
        if len(stage) > 1:
            x = (x + y) / 2
    return network.fc(network.global_pool(x))


def _re2tal_swin(network: Any, clips: torch.Tensor) -> torch.Tensor:
    x = network.pos_drop(network.patch_embed(clips))
    for stage in network.features:
        if not isinstance(stage, nn.Sequential):
            x = stage(x)  # merges patches
            continue
        y = x
        for block in stage:
            x, y = block.attn(block.norm1(x)) + y, x
            x, y = block.mlp(block.norm2(x)) + y, x
        x = (x + y) / 2
    x = network.norm(x).permute(0, 4, 1, 2, 3)
    return network.head(torch.flatten(network.avgpool(x), 1))


def _re2tal_slowfast(network: Any, pathways: list[torch.Tensor]) -> torch.Tensor:
    stem, *stages, pool, head = network.blocks
    streams = stem(pathways)  # its last step is a lateral connection
    for stage in stages:
        ends = []
        for pathway, x in zip(stage.multipathway_blocks, streams, strict=True):
            x = pathway.res_blocks[0](x)  # changes the shape: not a part of the reversible stage
            y = x
            for block in pathway.res_blocks[1:]:
                x, y = block.branch2(x).relu() + y, x
            ends.append((x + y) / 2)
        streams = stage.multipathway_fusion(ends)  # the fast pathway's end goes to the slow one
    return head(pool(streams))
