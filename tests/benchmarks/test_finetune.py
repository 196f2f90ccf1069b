"""The comparison of ways to finetune: each task runs, a sweep resumes, and the page says what its rows do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import revsurgeon as rs
from benchmarks.finetune import __main__ as program
from benchmarks.finetune import digits_task, segmentation_task, sweep, video_task
from benchmarks.finetune.arms import ARMS
from benchmarks.finetune.claims import CHOICES, OURS, PAPERS, Claim
from benchmarks.finetune.page import BEGIN, END, PAGE, shown, tables, write_page
from benchmarks.finetune.pretrained import pretrained_weights
from benchmarks.finetune.results import Results
from benchmarks.finetune.run import run
from benchmarks.finetune.statistics import Spread
from benchmarks.finetune.task import REHEARSAL, Settings, Task
from benchmarks.finetune.tasks import FOR_A_GPU, TASKS

ON_A_CPU = [name for name in TASKS if name not in FOR_A_GPU]  # a larger network of the same class is no test

TINY = Settings(
    steps=2,
    batch=4,
    learning_rate=1e-3,
    samples=20,
    pretraining_steps=1,
    pretraining_batch=4,
    pretraining_rate=1e-3,
)


@pytest.fixture
def _little_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer blocks and test samples."""
    monkeypatch.setitem(digits_task._OPTIONS, "depth", 2)
    monkeypatch.setitem(segmentation_task._OPTIONS, "depths", (2, 2))
    monkeypatch.setattr(digits_task, "_VIEWS", 1)
    monkeypatch.setattr(video_task, "_TEST_VIEWS", 1)
    monkeypatch.setattr(segmentation_task, "_TEST_CANVASES", 8)


def row(arm: str, seed: int, **figures: Any) -> dict[str, Any]:
    settings = TASKS["digits"](None).settings.to_dict()
    return {"task": "digits", "arm": arm, "seed": seed, "status": "done", "settings": settings} | figures


def written(folder: Path, scores: dict[str, list[float]], **figures: Any) -> Results:
    results = Results("digits", folder)
    for arm, found in scores.items():
        for seed, score in enumerate(found):
            results.add(row(arm, seed, score=score, cpu_seconds=1.0, **figures))
    return Results("digits", folder)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_little_to_do")
@pytest.mark.parametrize("name", ON_A_CPU)
def test_a_task_is_pretrained_and_finetuned_conventionally_and_reversibly(name: str, tmp_path: Path) -> None:
    task = TASKS[name](TINY)
    weights = pretrained_weights(task, tmp_path)
    plain = run(task, ARMS["conventional"], 0, weights)
    dynamic = run(task, ARMS["paper-exact"], 0, weights)
    assert (plain["status"], dynamic["status"]) == ("done", "done")
    assert 0 <= plain["score"] <= 100
    assert 0 <= dynamic["score_at_1_0"] <= 100
    assert dynamic["start"] == (1.0, 0.1)
    assert dynamic["end"] == (0.3, 0.7)
    assert dynamic["gradient_error_at_start"] == 0.0
    json.dumps(dynamic)


@pytest.mark.parametrize("name", ON_A_CPU)
def test_pretraining_is_done_once_and_gives_the_whole_backbone(name: str, tmp_path: Path) -> None:
    task = TASKS[name](TINY)
    weights = pretrained_weights(task, tmp_path)
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    assert pretrained_weights(task, tmp_path).keys() == weights.keys()
    assert file.stat().st_mtime_ns == before
    named = {name for name, _ in task.network().named_parameters()}
    assert weights.keys() >= {name for name in named if name.startswith(task.backbone)}
    assert any(not name.startswith(task.backbone) for name in named)


def test_all_arms_of_a_seed_see_the_same_batches() -> None:
    for name in ON_A_CPU:
        task = TASKS[name](TINY)
        first, again, other = task.batch(0, 1), task.batch(0, 1), task.batch(1, 1)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
        assert not torch.equal(first[0], other[0])


def test_the_arms_differ_in_what_they_say_they_do() -> None:
    recipes = {name: arm.recipe(100) for name, arm in ARMS.items()}
    assert {name for name, recipe in recipes.items() if recipe is None} == {"conventional", "frozen"}
    distinct = {r.model_copy(update={"name": ""}).to_yaml() for r in recipes.values() if r is not None}
    assert (
        len(distinct) == sum(r is not None for r in recipes.values()) - 1
    )  # re2 and re2-scratch are the same
    eta = {name: recipes[name].schedule.update_every for name in ("every-step", "paper-exact", "rarely")}
    assert eta == {"every-step": 1, "paper-exact": 2, "rarely": 10}
    assert recipes["paper-exact"].schedule.until.fraction == 0.5


class Broken:
    """A task whose loss is not a number from the second step on, or whose network raises."""

    name, text, metric, backbone, pretrained = "broken", "", "accuracy", ("backbone.",), ("backbone.",)
    settings = TINY

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def network(self) -> nn.Module:
        return nn.Linear(2, 2)

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        return torch.ones(3, 2), torch.full((), float("nan") if step else 1.0)

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if self.error is not None:
            raise self.error
        return network(batch[0]).sum() * batch[1]


@pytest.mark.parametrize(
    ("task", "status"),
    [
        (Broken(), "diverged"),
        (Broken(rs.ChainBrokenError("a segment did not repeat")), "failed"),
        (Broken(RuntimeError("shapes")), "failed"),
    ],
)
def test_a_run_without_a_result_is_a_row_too(task: Task, status: str) -> None:
    found = run(task, ARMS["conventional"], 0, {})
    assert found["status"] == status
    assert found["detail"]
    assert "score" not in found


def test_a_sweep_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def pretend(task: sweep.Sweep, arm: str, seed: int) -> dict[str, Any]:
        ran.append((arm, seed))
        return row(arm, seed, score=50.0, cpu_seconds=0.1)

    monkeypatch.setattr(sweep, "one_run", pretend)
    words = ["digits", "--arms", "conventional,re2", "--results", str(tmp_path), "--seeds"]
    assert program.main([*words, "1"]) == 0
    assert program.main([*words, "2"]) == 0
    assert ran == [("conventional", 0), ("re2", 0), ("conventional", 1), ("re2", 1)]
    assert len((tmp_path / "finetune-digits.jsonl").read_text().splitlines()) == 4


def test_a_rehearsal_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def pretend(task: sweep.Sweep, arm: str, seed: int) -> dict[str, Any]:
        ran.append((task.settings, arm))
        return row(arm, seed, score=50.0, cpu_seconds=0.1)

    monkeypatch.setattr(sweep, "one_run", pretend)
    assert program.main(["digits", "--rehearse", "--results", str(tmp_path)]) == 0
    assert ran == [(REHEARSAL, arm) for arm in program.REHEARSED]
    assert list(tmp_path.iterdir()) == []


def test_the_large_task_is_the_small_ones_with_a_column_once_it_has_been_run(tmp_path: Path) -> None:
    task = TASKS["video-large"](REHEARSAL)
    clips, labels = task.batch(0, 0)
    assert clips.shape == (2, 16, 1, 96, 96)
    assert labels.max() < 40
    assert "video-large" not in shown(tmp_path)
    Results("video-large", tmp_path).add(row("re2", 0, score=1.0, cpu_seconds=1.0, gpu="some GPU"))
    assert "runs on some GPU" in tables(shown(tmp_path))


def test_a_row_of_other_settings_or_of_a_failure_is_run_again(tmp_path: Path) -> None:
    results = written(tmp_path, {"re2": [50.0]})
    settings = TASKS["digits"](None).settings.to_dict()
    assert results.is_done("re2", 0, settings)
    assert not results.is_done("re2", 0, {**settings, "steps": 1})
    results.add(row("re2", 0, cpu_seconds=0.1) | {"status": "failed", "detail": "why"})
    assert not results.is_done("re2", 0, settings)


def test_the_interval_of_a_mean_is_students() -> None:
    spread = Spread.of([1.0, 2.0, 3.0])  # mean 2, deviation 1, t(2) = 4.303
    assert spread is not None
    assert spread.interval is not None
    assert spread.interval == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert Spread.of([]) is None


@pytest.mark.parametrize(
    ("kind", "first", "verdict"),
    [
        ("above", [60.0, 61.0, 60.5], "confirmed"),
        ("above", [49.0, 50.5, 51.0], "not seen"),
        ("above", [40.0, 41.0, 40.5], "opposite"),
        ("keeps", [49.9, 50.0, 50.1], "confirmed"),
        ("keeps", [45.0, 50.0, 55.0], "not seen"),
        ("keeps", [40.0, 41.0, 40.5], "opposite"),
        ("keeps", [50.0, 50.0], "too few runs"),
        ("either", [60.0, 61.0, 60.5], "better"),
        ("either", [49.0, 50.5, 51.0], "no difference seen"),
        ("either", [40.0, 41.0, 40.5], "worse"),
    ],
)
def test_a_verdict_follows_from_the_interval(
    kind: Any, first: list[float], verdict: str, tmp_path: Path
) -> None:
    results = written(tmp_path, {"hold": first, "re2": [50.0, 50.0, 50.0]})
    claim = Claim("", ("hold", "score"), ("re2", "score"), kind)
    assert claim.found(results)[1] == verdict


def test_the_page_is_made_of_the_rows_and_says_what_is_missing(tmp_path: Path) -> None:
    errors = {"gradient_error_at_start": 0.9, "gradient_error_at_end": None}
    written(tmp_path, {"conventional": [80.0, 82.0], "re2": [70.0, 74.0]}, score_at_1_0=60.0, **errors)
    Results("digits", tmp_path).add(row("re2", 2, cpu_seconds=1.0) | {"status": "diverged", "detail": "nan"})
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nstale words\n{END}\nafter\n")
    write_page(tmp_path, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale words" not in text
    line = next(line for line in text.splitlines() if line.startswith("| `re2` |"))
    assert "72.0 ± 2.8 (-9.0 ± 1.4), n = 2; 1 diverged" in line  # paired: -10 and -8
    assert line.count("not run yet") == 2
    assert "| `re2` | 9e-01, not finite | not run yet | not run yet |" in text


def test_every_claim_is_about_arms_that_there_are() -> None:
    arms = {side[0] for claim in (*PAPERS, *CHOICES, *OURS) for side in (claim.first, claim.second)}
    assert arms <= ARMS.keys()


def test_the_page_agrees_with_the_committed_results() -> None:
    between = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    assert between.strip() == tables(shown()).strip()
