"""Building networks without filling weights: buffers are right, memory is not taken, ties hold."""

from __future__ import annotations

import gc
import json
import threading
import time
from contextlib import contextmanager

import psutil
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from revsurgeon.errors import ArtifactError
from revsurgeon.sources import build_architecture, resolve
from revsurgeon.sources.construction import on_meta, with_empty_weights, with_weights, without_weights
from revsurgeon.sources.stand_ins import is_stand_in, stand_ins


class Net(nn.Module):
    """Has every kind of tensor: tied parameters, and buffers inside and outside the state dict."""

    def __init__(self, *, frozen=False):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6, bias=False)
        self.tied.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)
        self.scale = nn.Parameter(torch.ones(6), requires_grad=False)
        self.register_buffer("table", torch.arange(6.0), persistent=False)

    def forward(self, x):
        return self.norm(self.tied(self.first(x)) * self.scale + self.table)


class RunsItself(nn.Module):
    """Finds a size by a forward in its constructor, and puts a buffer where a parameter is."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.width = self.stem(torch.zeros(1, 4)).shape[1] + int(torch.tensor(3).item())
        self.head = nn.Linear(4, self.width)
        table = torch.ones(self.width, device=self.stem.weight.device)
        self.register_buffer("table", table, persistent=False)


class WritesItself(nn.Module):
    """Initialises its parameters in every way that is found in the libraries."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(8, 4))
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.trunc_normal_(self.weight, std=0.02, a=0.03, b=0.04)  # drawn by rejection
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.weight.data.uniform_(-1, 1).mul_(2)
        self.weight.data[0] = 0.0
        with torch.no_grad():
            self.weight[1].fill_(3.0)
            self.weight.copy_(torch.ones(8, 4))
        self.embedding = nn.Embedding(5, 4, padding_idx=0)
        self.gamma = nn.Parameter(1e-6 * torch.ones(4))
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2)


def test_on_meta_nothing_has_memory_whatever_the_constructor_does():
    for construct in (Net, RunsItself, WritesItself):
        module = on_meta(construct)
        assert all(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])
        assert all(parameter.is_contiguous() for parameter in module.parameters())


@pytest.mark.parametrize("network", [Net, RunsItself, WritesItself])
def test_without_weights_buffers_are_those_of_the_constructor(network):
    module, real = without_weights(network), network()
    buffers = dict(real.named_buffers())
    assert buffers.keys() == dict(module.named_buffers()).keys()
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in module.named_buffers())
    shapes = {name: parameter.shape for name, parameter in real.named_parameters()}
    assert {name: parameter.shape for name, parameter in module.named_parameters()} == shapes


def test_without_weights_parameters_have_no_memory_and_keep_their_ties():
    module = without_weights(Net)
    assert all(is_stand_in(parameter) for parameter in module.parameters())
    assert all(parameter.untyped_storage().nbytes() == 4 for parameter in module.parameters())
    assert module.tied.weight is module.first.weight
    assert not module.scale.requires_grad


def test_writing_to_tensors_that_are_not_parameters_is_not_skipped():
    with stand_ins():
        assert torch.empty(3).fill_(2.0).tolist() == [2.0, 2.0, 2.0]


def test_empty_weights_are_allocated_once_and_keep_their_ties():
    module = with_empty_weights(Net)
    assert not any(is_stand_in(parameter) for parameter in module.parameters())
    assert module.tied.weight is module.first.weight
    assert not module.scale.requires_grad


def test_weights_are_taken_from_the_state_dict_and_not_copied():
    state = Net().state_dict()

    def load():
        module = Net()
        module.load_state_dict(state)
        return module

    module, absent = with_weights(load, Net)
    assert absent == []
    assert module.first.weight.data_ptr() == state["first.weight"].data_ptr()
    assert module.tied.weight is module.first.weight
    assert module.norm.running_mean.data_ptr() == state["norm.running_mean"].data_ptr()
    assert not module.scale.requires_grad


@pytest.mark.parametrize("network", [Net, RunsItself])
def test_what_a_checkpoint_lacks_is_initialised_repeatably_and_named(network):
    state = network().state_dict()
    gone = [name for name in state if name in ("first.bias", "head.weight", "head.bias")]
    state = {name: tensor for name, tensor in state.items() if name not in gone}

    def load():
        module = network()
        module.load_state_dict(state, strict=False)
        return module

    (first, absent), (second, _) = with_weights(load, network), with_weights(load, network)
    assert absent == gone
    for name in gone:
        assert not is_stand_in(first.get_parameter(name))
        assert torch.equal(first.get_parameter(name), second.get_parameter(name))


def test_other_threads_build_and_load_as_ever_meanwhile():
    started, finish, results = threading.Event(), threading.Event(), []

    def construct():
        started.set()
        assert finish.wait(20)
        return Net()

    def other():
        assert started.wait(20)
        state = Net().state_dict()
        module = Net()
        module.load_state_dict(state)
        results.append(
            (module.first.weight.is_meta, module.first.weight.data_ptr() == state["first.weight"].data_ptr())
        )
        finish.set()

    thread = threading.Thread(target=other)
    thread.start()
    module, _ = with_weights(construct, Net)
    thread.join()
    assert results == [(False, False)]
    assert module.first is not None


def test_after_an_error_loading_is_as_it_was_before():
    before = nn.Module.load_state_dict

    def fail():
        raise KeyError("in a constructor")

    with pytest.raises(KeyError):
        with_weights(fail, Net)
    assert nn.Module.load_state_dict is before
    assert not is_stand_in(Net().first.weight)


@pytest.mark.parametrize(
    ("spec", "inputs"),
    [
        ("demo", "x=1x1x8x8"),
        ("timm:test_vit", "x=1x3x160x160"),
        ("timm:test_convnext", "x=1x3x64x64"),
        ("timm:swin_tiny_patch4_window7_224", "x=1x3x224x224"),  # buffers outside the state dict
        ("timm:vit_tiny_r_s16_p8_224", "x=1x3x224x224"),  # runs its stem in the constructor
        ("torchvision:swin3d_t", "x=1x3x4x32x32"),
        ("torchvision:inception_v3", "x=1x3x96x96"),
    ],
)
def test_a_rebuilt_architecture_with_the_weights_computes_the_same(spec, inputs):
    source = resolve(spec, random_weights=True)
    module = source.module()
    rebuilt = build_architecture(json.loads(json.dumps(source.build)), source.config)
    rebuilt.load_state_dict(module.state_dict(), strict=True)
    small = source.inputs.override([inputs]).example(batch_size=1)
    with torch.no_grad():
        assert torch.equal(rebuilt(*small), module(*small))
    assert not rebuilt.training


def test_a_rebuilt_transformers_network_with_the_weights_computes_the_same(videomae, sharded):
    for directory in (videomae, sharded):
        source = resolve(str(directory))
        module = source.module()
        for config in (source.config, None):
            rebuilt = build_architecture(json.loads(json.dumps(source.build)), config)
            rebuilt.load_state_dict(module.state_dict(), strict=True)
            inputs = source.inputs.example()
            with torch.no_grad():
                assert torch.equal(rebuilt(**inputs).logits, module(**inputs).logits)


def test_a_rebuilt_architecture_on_meta_takes_no_memory(videomae):
    source = resolve(str(videomae))
    module = build_architecture(source.build, source.config, device="meta")
    assert all(tensor.is_meta for tensor in module.state_dict().values())


@pytest.mark.parametrize(
    "build", [{}, None, {"library": "keras", "entry": "x", "arguments": {}}, {"library": "timm"}]
)
def test_a_record_of_another_form_is_refused(build):
    with pytest.raises(ArtifactError, match="does not say how to build"):
        build_architecture(build)


@contextmanager
def peak_memory():
    """Yields a list that gets the most resident memory, in bytes, above what there was before."""
    gc.collect()  # what earlier tests left must not be freed meanwhile
    process, running, peaks = psutil.Process(), True, [0]
    before = process.memory_info().rss

    def watch():
        while running:
            peaks.append(process.memory_info().rss - before)
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    result = []
    try:
        yield result
    finally:
        running = False
        thread.join()
        result.append(max(peaks))


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_loading_holds_the_weights_once(library, tmp_path, videomae):
    if library == "timm":
        source = resolve("timm:vit_base_patch32_224")
    else:
        wide = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072}
        config = json.loads((videomae / "config.json").read_text()) | wide
        (tmp_path / "config.json").write_text(json.dumps(config))
        source = resolve(str(tmp_path))
    (tmp_path / "config.json").write_bytes(source.config)
    tensors = {
        name: torch.zeros(tensor.shape, dtype=tensor.dtype)
        for name, tensor in source.module("meta").state_dict().items()
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    del tensors
    with peak_memory() as peak:
        module = resolve(str(tmp_path)).module()
        assert sum(float(tensor.sum()) for tensor in module.state_dict().values()) == 0  # touches every page
    assert peak[0] < 1.15 * size  # once, plus the modules themselves and the hash's buffer
