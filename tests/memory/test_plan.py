"""`revsurgeon.estimate_memory`: what its options change, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import revsurgeon as rs
from revsurgeon.errors import UsageError
from revsurgeon.memory.advice import advice
from revsurgeon.memory.plan import Fit, Row
from revsurgeon.memory.simulation import Sharding
from revsurgeon.memory.sizes import Sizes, parse_bytes
from revsurgeon.sources.inputs import InputSpec
from tests.models import residual_stack, seeded


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def plan(**options: Any) -> rs.MemoryPlan:
    network, inputs = seeded(lambda: residual_stack(4))
    options = {"strategies": ["stored", "exact"], "device": "cpu"} | options
    return rs.estimate_memory(network, example_inputs=inputs, **options)


def parameter_bytes() -> int:
    return sum(p.numel() * 4 for p in residual_stack(4)[0].parameters())


def test_states_are_shared_out_between_processes() -> None:
    alone = plan(strategies=["stored"]).row("stored").parts
    shared = plan(strategies=["stored"], zero=3, world_size=4).row("stored").parts
    assert alone["optimizer"] >= 2 * parameter_bytes()
    for name in ("optimizer", "parameters"):
        assert shared[name] == round(alone[name] / 4)
    assert shared["activations"] == alone["activations"]


@pytest.mark.parametrize(("stage", "names"), [(0, ()), (1, ("optimizer",)), (2, ("gradients", "optimizer"))])
def test_a_stage_shares_out_what_it_says(stage: int, names: tuple[str, ...]) -> None:
    assert Sharding(stage, 8).shares() == dict.fromkeys(names, 1 / 8)


def test_gradients_are_there_during_the_second_of_two_accumulated_passes() -> None:
    once, twice = (plan(strategies=["stored"], batch=64, accumulate=n).row("stored") for n in (1, 2))
    assert once.phase == twice.phase == "backward"
    # At the first backward's peak hardly any gradient is there; at the second one's all are.
    assert twice.parts["gradients"] == parameter_bytes() > once.parts["gradients"]
    assert twice.parts["activations"] == once.parts["activations"]


def test_adapters_leave_gradients_and_states_for_themselves_alone() -> None:
    found = plan(lora_rank=2)
    full, adapted = found.row("exact"), found.row("exact", 2)
    adapters = 4 * 4 * 2 * (8 + 8)  # bytes, blocks, rank, widths
    assert adapted.parts["parameters"] == full.parts["parameters"] + adapters
    assert 2 * adapters <= adapted.parts["optimizer"] < full.parts["optimizer"]


def test_what_is_kept_grows_with_depth_only_where_it_is_stored() -> None:
    def kept(depth: int, way: str) -> int:
        network, inputs = seeded(lambda: residual_stack(depth))
        found = rs.estimate_memory(network, example_inputs=inputs, strategies=[way], device="cpu")
        return found.row(way).kept

    assert kept(5, "re2") == kept(3, "re2")
    assert kept(5, "stored") > kept(3, "stored")


def test_the_floor_is_two_streams_and_two_gradients() -> None:
    assert plan(batch=16).floor == 4 * (16 * 5 * 8 * 4)


def test_a_network_is_built_anew_for_an_image_size_that_it_does_not_take() -> None:
    found = rs.estimate_memory("demo", image_size=16, strategies=["stored"], device="cpu")
    assert found.inputs == {"0": (1, 1, 16, 16)}
    with pytest.raises(UsageError, match="does not take these inputs"):
        rs.estimate_memory("demo", inputs=["0=2x3x8x8"], strategies=["stored"])
    with pytest.raises(UsageError, match="no input with frames"):
        rs.estimate_memory("demo", frames=4)


def test_what_fits_was_simulated_and_so_was_what_does_not() -> None:
    limit = 3_000_000
    found = plan(strategies=["exact"], fit=limit)
    (fit,) = found.fits
    assert fit.largest is not None
    assert fit.next == fit.largest + 1
    assert fit.peak <= limit < (fit.peak_of_next or 0)
    assert plan(strategies=["exact"], batch=fit.largest).row("exact").peak == fit.peak
    assert plan(strategies=["exact"], batch=fit.next).row("exact").peak == fit.peak_of_next
    assert found.vary == "batch"


@pytest.mark.slow
def test_a_converted_network_is_planned_at_its_own_coefficients(tmp_path: Path) -> None:
    path = rs.convert("demo", output=tmp_path / "here", start=(0.8, 0.2), verify=False)
    found = rs.estimate_memory(path, strategies=["exact"], device="cpu")
    assert found.point == (0.8, 0.2)
    assert found.name == "here"
    json.dumps(found.to_dict())


def test_a_plan_is_drawn(tmp_path: Path) -> None:
    found = drawable()
    assert found.plot(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert found.plot(tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    with pytest.raises(UsageError, match="no picture"):
        found.plot(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("text", "size"), [("24GiB", 24 * 2**30), ("1.5 GB", 1_500_000_000), ("512mib", 2**29), (7, 7)]
)
def test_sizes_of_memory_are_read(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["2XB", "", "GiB", "-1GB", "0GiB", "1e9", "24 G iB"])
def test_other_texts_are_no_size_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="not a size of memory"):
        parse_bytes(text)


def test_a_size_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="from 1 up"):
        Sizes(batch=0)


def row(strategy: str, peak: int, time: float) -> Row:
    return Row(strategy, strategy, None, peak, {"activations": peak}, "backward", "", 0, 1.0, time)


def drawable() -> rs.MemoryPlan:
    inputs = {"x": (2, 3, 8, 8)}
    settings = {"optimizer": "adamw"}
    rows = tuple(row(name, size * 2**20, 1.0) for name, size in (("stored", 100), ("exact", 30)))
    return rs.MemoryPlan("a", "cpu", settings, inputs, (0.9, 0.1), ("b.0",), 1, rows, limit=60 * 2**20)


def fits(**largest: int) -> list[Fit]:
    return [Fit(name, name, None, n, 1, n + 1, 2, 1.0) for name, n in largest.items()]


ROWS = [row("stored", 100, 1.0), row("checkpoint", 40, 1.25), row("exact", 20, 1.4)]


def test_the_advice_is_the_quickest_way_that_fits() -> None:
    many = fits(stored=2, checkpoint=5, exact=10)
    for limit, word in (
        (100, "nothing else is needed"),
        (40, "Plain checkpointing is enough"),
        (20, "exact is"),
    ):
        assert word in advice(ROWS, many, limit, "batch", ["blocks.0"])
    assert "does not fit in any way" in advice(ROWS, many, 10, "batch", ["blocks.0"])
    assert "Nothing fits" in advice(ROWS, [], 10, "batch", ["blocks.0"])


def test_plain_checkpointing_is_advised_where_the_rest_gains_little() -> None:
    said = advice(
        [row("stored", 100, 1.0), row("checkpoint", 40, 1.2), row("exact", 39, 1.4)], [], None, "", ["b.0"]
    )
    assert "Plain checkpointing is enough" in said
    assert "torch.utils.checkpoint" in said
    assert "model.b" in said
    assert "exact needs" in advice(ROWS, [], None, "batch", ["blocks.0"])


def llama(directory: Path, **config: Any) -> str:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    known = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 100,
        "use_cache": False,
    }
    (directory / "config.json").write_text(json.dumps(known | sizes | config))
    return str(directory)


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("revsurgeon.memory.allocator.available", lambda device: 0)


def test_a_network_that_looks_at_its_mask_is_planned_without_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_room(monkeypatch)
    plan = rs.estimate_memory(llama(tmp_path), batch=2, strategies=["stored", "exact"])
    assert plan.row("exact").kept < plan.row("stored").kept


def test_inputs_of_large_batches_are_never_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    example = InputSpec.example

    def counted(spec: InputSpec, batch_size: int = 2, seed: int = 0, device: str = "cpu") -> Any:
        if device != "meta":
            made.append(batch_size)
        return example(spec, batch_size, seed, device)

    monkeypatch.setattr(InputSpec, "example", counted)
    rs.estimate_memory("demo", batch=10**6, strategies=["stored"])
    assert not made
    rs.estimate_memory(llama(tmp_path), batch=10**6, strategies=["stored"])
    assert max(made) == 2  # it looks at its mask


def test_where_weights_are_needed_and_do_not_fit_both_reasons_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_room(monkeypatch)
    with pytest.raises(rs.UsageError, match="without weights, and they do not fit") as raised:
        rs.estimate_memory(llama(tmp_path), inputs=["input_ids=2x8:int64", "attention_mask=2x9:int64"])
    assert "0.0 GiB are left" in str(raised.value.where)


def test_inputs_that_no_network_of_the_kind_takes_are_told_by_the_network_itself(tmp_path: Path) -> None:
    with pytest.raises(rs.UsageError, match="does not take these inputs"):
        rs.estimate_memory(llama(tmp_path), inputs=["input_ids=2x8:int64", "attention_mask=2x9:int64"])


@pytest.mark.slow
def test_a_vit_in_chunks_peaks_at_three_floors() -> None:
    """Two streams and two gradients are one floor; a segment at work and the side buffers are two."""
    row = rs.estimate_memory("timm:vit_small_patch16_224", batch=32, strategies=["chunked"]).row("chunked")
    assert row.floors <= 3
