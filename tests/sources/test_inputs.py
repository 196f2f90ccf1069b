"""Example inputs: deterministic, of the right range, and overridden as the command line says."""

from __future__ import annotations

import json

import pytest
import torch

from revsurgeon.errors import UsageError
from revsurgeon.sources import Input, InputSpec

IMAGE = InputSpec({"0": Input((1, 3, 8, 8))}, parameters=("x", "mask"))
TEXT = InputSpec(
    {
        "input_ids": Input((1, 6), "int64", "tokens", high=50, avoid=(0, 7)),
        "attention_mask": Input((1, 6), "int64", "ones"),
    },
    parameters=("input_ids", "attention_mask", "token_type_ids"),
)


def test_positional_inputs_come_as_a_tuple_and_named_ones_as_a_dict():
    assert isinstance(IMAGE.example(), tuple)
    assert list(TEXT.example()) == ["input_ids", "attention_mask"]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_first_dimension_is_the_batch(batch_size):
    assert IMAGE.example(batch_size)[0].shape == (batch_size, 3, 8, 8)


def test_the_same_seed_gives_the_same_values_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    first, second, other = IMAGE.example(seed=3)[0], IMAGE.example(seed=3)[0], IMAGE.example(seed=4)[0]
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_tokens_stay_within_the_vocabulary_and_off_special_ones():
    ids = TEXT.example(batch_size=200)["input_ids"]
    assert ids.dtype is torch.int64
    assert set(ids.unique().tolist()) == set(range(50)) - {0, 7}


def test_a_mask_hides_nothing():
    assert bool(TEXT.example()["attention_mask"].all())


def test_on_meta_only_shapes_and_dtypes_exist():
    assert IMAGE.example(batch_size=4, device="meta")[0].shape == (4, 3, 8, 8)
    assert TEXT.example(device="meta")["input_ids"].is_meta


def test_the_record_of_inputs_is_json_and_reads_back():
    for spec in (IMAGE, TEXT, InputSpec()):
        assert InputSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_another_float_dtype_leaves_indices_alone():
    assert IMAGE.with_float_dtype("bfloat16").example()[0].dtype is torch.bfloat16
    assert TEXT.with_float_dtype("bfloat16") == TEXT


@pytest.mark.parametrize(
    "option", ["x=2x3x16x16", "0=2,3,16,16", "x=2,3,16,16:float32", " x = 2x3x16x16 : float "]
)
def test_a_positional_input_is_overridden_by_name_or_position(option):
    changed = IMAGE.override([option])
    assert changed.positional
    assert changed.entries["0"].shape == (2, 3, 16, 16)


def test_an_overridden_input_keeps_its_meaning():
    changed = TEXT.override(["input_ids=1x12"])
    assert changed.entries["input_ids"] == Input((1, 12), "int64", "tokens", high=50, avoid=(0, 7))
    assert TEXT.override(["1=1x12"]).entries["attention_mask"].shape == (1, 12)


def test_an_overridden_dtype_of_another_kind_changes_the_meaning():
    assert IMAGE.override(["x=1x4:int64"]).entries["0"].kind == "tokens"
    assert IMAGE.override(["x=1x4:bool"]).entries["0"].kind == "ones"
    assert IMAGE.override(["x=1x4:bfloat16"]).entries["0"].kind == "normal"


def test_another_parameter_of_the_forward_can_be_added():
    assert IMAGE.override(["mask=1x4:bool"]).entries["1"] == Input((1, 4), "bool", "ones")
    added = TEXT.override(["token_type_ids=1x6:int64"])
    assert list(added.entries) == ["input_ids", "attention_mask", "token_type_ids"]


def test_any_name_may_be_given_where_nothing_is_known():
    assert list(InputSpec().override(["video=1x3x4x8x8"]).example()) == ["video"]
    assert InputSpec().override(["0=1x3", "1=1x4"]).example()[1].shape == (2, 4)


_TOO_LARGE = ["x=" + "x".join(["99999"] * 9), "x=" + "9" * 40]
_NO_NAME = ["", "1x3", "=1x3", "x", "9=1x3", "y=1x3"]
_NO_SHAPE = ["x=", "x=0x3", "x=-1x3", "x=1x", "x=1xa", "x=1.5x2"]
_NO_DTYPE = ["x=1x3:", "x=1x3:text", "x=1x3:float32:4"]


@pytest.mark.parametrize("option", [*_TOO_LARGE, *_NO_NAME, *_NO_SHAPE, *_NO_DTYPE])
def test_a_malformed_option_shows_the_right_form(option):
    with pytest.raises(UsageError) as raised:
        IMAGE.override([option])
    assert raised.value.exit_code == 2
    assert "NAME=SHAPE[:DTYPE]" in raised.value.hint or "float32" in raised.value.hint


def test_a_name_that_the_forward_does_not_take_lists_those_it_does():
    with pytest.raises(UsageError, match="no input 'pixels'") as raised:
        IMAGE.override(["pixels=1x3"])
    assert "x, mask" in raised.value.where


@pytest.mark.parametrize(
    "examples", ["text", (1, 2), {"x": None}, torch.tensor(3.0), (torch.ones(1, dtype=torch.complex64),)]
)
def test_examples_that_are_not_tensors_with_a_batch_are_refused(examples):
    with pytest.raises(UsageError):
        InputSpec.of_examples(examples)


def test_examples_tell_shapes_dtypes_and_the_range_of_indices():
    spec = InputSpec.of_examples({"x": torch.ones(4, 3), "ids": torch.tensor([[5, 9]])})
    assert spec.entries["x"] == Input((4, 3))
    assert spec.entries["ids"].high == 10
