"""Networks that a user's own function makes."""

from __future__ import annotations

import sys

import pytest
import torch

from revsurgeon.errors import SourceError, UsageError
from revsurgeon.sources import build_architecture, resolve

NETWORKS = """
import torch

calls = []


class Net(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.linear = torch.nn.Linear(3, width)
        self.register_buffer("table", torch.arange(width).float(), persistent=False)

    def forward(self, x, scale=None):
        return self.linear(x) + self.table


def alone():
    calls.append("alone")
    return Net()


def with_inputs():
    calls.append("with_inputs")
    return Net(), (torch.zeros(5, 3),)


def with_named_inputs():
    return Net(), {"x": torch.zeros(5, 3), "scale": torch.zeros(5, dtype=torch.int64)}


def with_one_tensor():
    return Net(), torch.zeros(5, 3)


def needs_arguments(width):
    return Net(width)


def returns_text():
    return "network"


def fails():
    raise ZeroDivisionError("in the user's own code")


NUMBER = 5


class Nested:
    @staticmethod
    def make():
        return Net(8)
"""


@pytest.fixture(autouse=True)
def networks(tmp_path, monkeypatch):
    """A package `zoo` with a module of factories, in the working directory."""
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "__init__.py").touch()
    (tmp_path / "zoo" / "nets.py").write_text(NETWORKS)
    (tmp_path / "zoo" / "needs.py").write_text("import a_module_that_is_not_installed\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "zoo"]:
        del sys.modules[name]
    assert sys.path == path


def test_the_working_directory_is_importable_and_the_factory_makes_the_network():
    source = resolve("python:zoo.nets:with_inputs")
    module = source.module()
    assert type(module).__name__ == "Net"
    assert not module.training
    assert source.name == "with_inputs"
    assert source.provenance.kind == "python"
    assert list(source.provenance.files) == ["nets.py"]
    assert source.config is None
    assert module(*source.inputs.example(batch_size=3)).shape == (3, 4)


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        ("with_inputs", {"0": (5, 3)}),
        ("with_one_tensor", {"0": (5, 3)}),
        ("with_named_inputs", {"x": (5, 3), "scale": (5,)}),
        ("alone", {}),
    ],
)
def test_example_inputs_come_with_the_network_or_from_the_user(factory, expected):
    entries = resolve(f"python:zoo.nets:{factory}").inputs.entries
    assert {name: entry.shape for name, entry in entries.items()} == expected


def test_inputs_can_be_given_for_a_network_that_comes_without():
    source = resolve("python:zoo.nets:alone")
    inputs = source.inputs.override(["x=1x3"])
    assert source.module()(**inputs.example()).shape == (2, 4)
    with pytest.raises(UsageError, match="no input 'image'"):
        source.inputs.override(["image=1x3"])


def test_the_factory_is_called_once_for_inputs_and_first_network():
    source = resolve("python:zoo.nets:with_inputs")
    first = source.module()
    assert sys.modules["zoo.nets"].calls == ["with_inputs"]
    assert source.module() is not first


def test_weights_that_a_factory_draws_are_the_same_at_every_run():
    before = torch.get_rng_state()
    first, second = (resolve("python:zoo.nets:alone").module() for _ in range(2))
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_architecture_alone_is_on_meta():
    module = resolve("python:zoo.nets:with_inputs").module("meta")
    assert module.linear.weight.is_meta
    assert module.table.is_meta


def test_a_class_or_a_nested_function_is_a_factory_too():
    assert resolve("python:zoo.nets:Net").module().linear.out_features == 4
    assert resolve("python:zoo.nets:Nested.make").module().linear.out_features == 8


def test_rebuilding_needs_leave_and_gets_buffers_right():
    source = resolve("python:zoo.nets:alone")
    with pytest.raises(SourceError, match="Python code that is not part of the artifact"):
        build_architecture(source.build)
    rebuilt = build_architecture(source.build, allow_python=True)
    assert torch.equal(rebuilt.table, torch.arange(4).float())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package:make", "no Python module 'no_such_package'"),
        ("zoo.no_such:make", r"no Python module 'zoo\.no_such'"),
        ("zoo.nets:make", r"has no 'make'"),
        ("zoo.nets:needs_arguments", "needs arguments: width"),
        ("zoo.nets:returns_text", "returned a str"),
        ("zoo.nets:NUMBER", "is a int, not a function"),
    ],
)
def test_a_factory_that_cannot_be_used_says_why(name, message):
    with pytest.raises(SourceError, match=message) as raised:
        resolve(f"python:{name}")
    assert raised.value.hint


def test_a_misspelt_factory_is_answered_with_close_ones():
    with pytest.raises(SourceError) as raised:
        resolve("python:zoo.nets:with_input")
    assert "python:zoo.nets:with_inputs" in raised.value.hint


def test_errors_of_the_users_own_code_are_not_dressed_up():
    with pytest.raises(ZeroDivisionError):
        resolve("python:zoo.nets:fails")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_installed"):
        resolve("python:zoo.needs:make")
