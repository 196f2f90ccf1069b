"""The comparison with other ways to train: what its figures are made of, and that table and file agree."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import peers
from benchmarks.peers_child import measure_here, row_in_child, wait
from benchmarks.peers_couplings import Coupled, couple
from benchmarks.peers_figure import draw
from benchmarks.peers_goals import NOT_YET, goals
from benchmarks.peers_measure import peak_bytes, relative_error
from benchmarks.peers_networks import DEPTHS, SUBJECTS
from benchmarks.peers_results import Results
from benchmarks.peers_table import BEGIN, END, error, megabytes, write_tables
from benchmarks.peers_time import compared
from benchmarks.peers_ways import WAYS
from benchmarks.saved_bytes import call
from tests.models import hf_videomae, seeded, timm_swin, timm_vit, torchvision_swin3d

EPS = torch.finfo(torch.float32).eps
ELEMENTS = 1000


class Sines(nn.Module):
    """A chain of sines, each of which keeps its input."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.weight = nn.Parameter(torch.ones(ELEMENTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.weight
        for _ in range(self.count):
            x = x.sin()
        return x.sum()


class Recomputed(torch.autograd.Function):
    """The same sines, computed again in backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, count: int) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.count = count
        for _ in range(count):
            x = x.sin()
        return x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            y = x = x.detach().requires_grad_()
            for _ in range(ctx.count):
                y = y.sin()
            return (*torch.autograd.grad(y, x, grads[0]), None)


class RecomputedSines(Sines):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Recomputed.apply(x * self.weight, self.count).sum()


@pytest.mark.parametrize(
    ("make", "alive"),
    [
        # the inputs of the sines; in the backward of the last one also its cosine and the product with it
        (Sines, lambda count: count + 2),
        # the same, and the last one's output, which the function that recomputes still has
        (RecomputedSines, lambda count: count + 3),
    ],
)
@pytest.mark.parametrize("count", [2, 5])
def test_the_peak_of_a_step_is_the_one_that_is_counted_by_hand(make, alive, count):
    network, x = make(count), torch.randn(ELEMENTS)
    two_scalars = 2 * torch.float32.itemsize  # the loss, and the gradient that backward starts with
    expected = alive(count) * ELEMENTS * torch.float32.itemsize + two_scalars
    assert peak_bytes(lambda: network(x).backward()) == expected


def test_an_error_counts_a_missing_gradient_as_zero():
    three, four = torch.tensor([3.0]), torch.tensor([4.0])
    assert relative_error([three, four], [three, four]) == 0.0
    assert relative_error([three, None], [three, four]) == pytest.approx(4 / 5)
    assert relative_error([three, four], [three, None]) == pytest.approx(4 / 3)


class Added(Coupled):
    """What the source network itself does with its branches."""

    def __init__(self, functions: Any) -> None:
        super().__init__()
        self.functions = nn.ModuleList(functions)

    def reversible(self, x: torch.Tensor) -> torch.Tensor:
        for function in self.functions:
            x = x + function(x)
        return x


@pytest.mark.parametrize(
    ("subject", "make", "stages"),
    [
        ("vit-s", timm_vit, ("blocks",)),
        ("swin-t", timm_swin, ("layers.0.blocks", "layers.1.blocks")),
        ("video-swin-t", torchvision_swin3d, ("features.0", "features.2")),
        ("videomae-s", hf_videomae, ("videomae.encoder.layer",)),
    ],
)
def test_the_branches_that_peers_get_make_up_the_source_network(subject, make, stages):
    network, inputs = seeded(make)
    network.eval()
    small = dataclasses.replace(SUBJECTS[subject], stages=stages)
    expected = call(network, inputs).detach()
    couple(small, network, Added)
    assert sum(isinstance(module, Added) for module in network.modules()) == len(stages)
    added = call(network, inputs).detach()
    assert relative_error([added], [expected]) < 10 * EPS  # x + f and f + x round alike


def measuring_here(calls: list[str]) -> Callable[..., dict[str, Any]]:
    def measure(network: str, way: str, *, batch: int, device: str, limit: float) -> dict[str, Any]:
        calls.append(way)
        return {"network": network, "row": way, **measure_here(network, way, batch=batch, device=device)}

    return measure


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Four rows of the tiny network, one of them of a library that is not installed."""
    results = Results.read(tmp_path_factory.mktemp("peers"), "cpu")
    options: dict[str, Any] = {"batch": 2, "limit": 100.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "memcnn", None)
        calls: list[str] = []
        for _ in range(2):
            peers.measure_all(results, ["tiny"], WAYS_HERE, measure=measuring_here(calls), **options)
    assert calls == WAYS_HERE  # the second time all of them were there
    return Results.read(results.path.parent, "cpu")


WAYS_HERE = ["stored", "checkpoint", "memcnn", "exact-0.1"]


def test_a_library_that_is_not_installed_gives_a_row_that_says_so(measured):
    row = measured.row("tiny", "memcnn")
    assert row["status"] == "not installed"
    assert "revsurgeon[bench]" in row["reason"]


def test_a_coupling_does_not_apply_to_a_network_that_does_more_than_add():
    row = measure_here("resnet-50", "revlib", batch=1, device="cpu")
    assert row["status"] == "does not apply"
    assert "relu" in row["reason"]


def test_rows_are_measured_against_float64_and_against_their_own_stored_version(measured):
    stored, checkpoint, exact = (measured.row("tiny", way) for way in ("stored", "checkpoint", "exact-0.1"))
    # every matrix product rounds: some eps each in six segments, forward and backward
    assert all(0.0 < row["error_float64"] < 100 * EPS for row in (stored, checkpoint, exact))
    assert stored["error_dropout"] == checkpoint["error_dropout"] == exact["error_dropout"] == 0.0
    assert stored["distance"] == checkpoint["distance"] == 0.0 < exact["distance"]
    assert stored["error_float64"] == checkpoint["error_float64"]


def test_checkpointing_keeps_a_stream_a_block(measured):
    blocks, stream = 3, 2 * 17 * 32 * torch.float32.itemsize  # batch, tokens, width
    states = blocks * torch.get_rng_state().nbytes  # for dropout, which the hooks do not see
    stored, checkpoint = measured.row("tiny", "stored"), measured.row("tiny", "checkpoint")
    outside = checkpoint["saved"] - blocks * stream
    images, output = 2 * 3 * 32 * 32 * 4, 2 * 5 * 4
    assert checkpoint["held"] == outside - images + output + blocks * stream + states
    assert stored["saved"] - outside > 10 * blocks * stream


def test_table_and_file_agree(measured, tmp_path):
    page = tmp_path / "peers.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_tables(page, [measured, Results.read(tmp_path, "cuda")])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert f"## GPU\n\n{NOT_YET.capitalize()}." in text
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if "|" in line}
    for way in ("stored", "checkpoint", "exact-0.1"):
        row = measured.row("tiny", way)
        cells = lines[WAYS[way].title].strip("| ").split(" | ")[1:]
        sizes = [megabytes(row[what]) for what in ("saved", "held", "peak", "peak_without_gradients")]
        of_stored = measured.row("tiny", "stored")["error_float64"]
        errors = [error(row[what], of_stored) for what in ("error_float64", "error_dropout")]
        assert cells == [*sizes, NOT_YET, *errors, error(row["distance"])]
    assert "memcnn: not installed" in text
    assert f"- {NOT_YET.capitalize()}: selective checkpointing" in text
    assert "ViT-L, 224 x 224" in text.partition(f"### {NOT_YET.capitalize()}")[2]
    assert "torch" in measured.document["versions"]


def test_the_page_of_this_repository_has_the_tables_of_its_result_files(tmp_path):
    copy = tmp_path / "peers.md"
    copy.write_text(peers.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    write_tables(copy, [Results.read(peers.RESULTS, device) for device in ("cpu", "cuda")])
    assert copy.read_text(encoding="utf-8") == peers.PAGE.read_text(encoding="utf-8")


def test_the_figure_is_drawn_from_the_file(measured, tmp_path):
    draw(measured.document, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_errors_are_told_with_one_digit_and_wrong_ones_stand_out():
    assert [error(value, 1e-7) for value in (0.0, 2.4e-7, 0.0099, 0.01, 0.93, 3.0, float("nan"))] == [
        *("0", "2e-7", "1e-2", "**1e-2**", "**9e-1**", "**3**", "**nan**")
    ]
    assert error(0.93) == "9e-1"
    # Where float32 itself is that far off, with stored activations.
    assert [error(value, 0.02) for value in (0.02, 0.059, 0.061)] == ["2e-2", "6e-2", "**6e-2**"]


def results_of(tmp_path: Path, rows: list[dict[str, Any]], device: str = "cpu") -> Results:
    named = [{"status": "measured", **row} for row in rows]
    return Results(tmp_path / "peers.json", {"device": device, "rows": named, "goals": []})


def test_goals_are_reached_not_reached_or_not_measured_yet(tmp_path):
    video = [("stored", 1500, 1500), ("checkpoint", 200, 180), ("exact-0.1", 100, 80), ("blocks", 90, 60)]
    rows = [{"network": "videomae-s", "row": way, "saved": s, "held": h} for way, s, h in video]
    peaks = zip(DEPTHS, (100, 101, 101, 103), strict=True)
    rows += [{"network": name, "row": "re2", "peak_without_gradients": peak} for name, peak in peaks]
    stored, checkpoint, blocks, large, depth, *times = goals(results_of(tmp_path, rows))
    assert (stored["reached"], stored["figure"]) == ("reached", 1 / 15)
    assert (checkpoint["reached"], checkpoint["figure"]) == ("not reached", 0.5)
    assert (blocks["reached"], blocks["figure"]) == ("reached", 1 / 3)
    assert large == {**large, "reached": NOT_YET, "figure": None}
    assert (depth["reached"], depth["figure"]) == ("not reached", pytest.approx(0.03))
    assert {goal["reached"] for goal in times} == {NOT_YET}


@pytest.mark.parametrize(("device", "reached"), [("cpu", NOT_YET), ("cuda", "reached")])
def test_the_time_of_a_gpu_is_measured_on_one(tmp_path, device, reached):
    rows = [
        {"network": "vit-s", "row": way, "time": compared([ratio, ratio], [1.0, 1.0])}
        for way, ratio in (
            *(("stored", 1.0), ("exact-0.1", 1.2), ("blocks", 1.4)),
            *(("checkpoint", 1.3), ("float-0.1", 1.1)),
        )
    ]
    on_stored, *others = goals(results_of(tmp_path, rows, device))[5:9]
    assert on_stored["reached"] == reached
    assert [goal["reached"] for goal in others] == ["reached", "not reached", "not reached"]


def test_a_time_is_compared_within_its_rounds():
    found = compared([2.0, 8.0, 6.0], [1.0, 4.0, 2.0])
    assert found == {"n": 3, "median_seconds": 6.0, "ratio": 3.0, "ratio_quartiles": [2.0, 2.5]}


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("raise MemoryError", "did not fit"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "did not fit"),
        ("raise RuntimeError('it broke')", "failed"),
    ],
)
def test_a_child_that_dies_is_one_row(program, status):
    child = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    ended = wait(child, 60)
    assert ended["status"] == status
    assert ended["reason"]


def test_a_row_that_takes_too_long_is_given_up():
    row = row_in_child("tiny", "stored", batch=1, device="cpu", limit=0.01)
    assert row == {**row, "network": "tiny", "row": "stored", "status": "did not finish"}


@pytest.mark.slow
@pytest.mark.timeout(900)  # four processes, which import everything
def test_the_command_measures_times_and_tells_one_row_after_the_other(tmp_path):
    page = tmp_path / "peers.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    places = ["--network", "tiny", "--output", str(tmp_path), "--page", str(page)]
    rows = ["--row", "stored", "--row", "checkpoint"]
    peers.main([*places, *rows])
    peers.main([*places, *rows, "--time", "--steps", "2"])
    peers.main([*places, "--table"])
    written = json.loads((tmp_path / "peers.json").read_text())["rows"]
    assert [(row["row"], row["status"], row["time"]["n"]) for row in written] == [
        *(("stored", "measured", 2), ("checkpoint", "measured", 2))
    ]
    assert "n = 2" in page.read_text()
    assert (tmp_path / "peers.png").exists()
