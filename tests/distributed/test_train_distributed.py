"""The example script runs under torchrun, and a resumed run ends where the uninterrupted one does."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import revsurgeon as rs

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "train_distributed.py"
SECONDS = 200


def options(source: Path, strategy: str, checkpoint: Path) -> list[str]:
    told = {"--source": source, "--strategy": strategy, "--checkpoint": checkpoint}
    told |= {"--steps": 4, "--save-every": 2, "--batch-size": 4}
    return [str(word) for pair in told.items() for word in pair]


ONE_MACHINE = ("--standalone", "--nproc-per-node", "2")


def launched(arguments: Sequence[str], machines: Sequence[str] = ONE_MACHINE) -> subprocess.Popen[str]:
    """Start the script under torchrun, in a session of its own, so that nothing of it can stay behind."""
    command = [sys.executable, "-m", "torch.distributed.run", *machines, str(SCRIPT), *arguments]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def outputs(runs: Iterable[subprocess.Popen[str]]) -> list[str]:
    """What each of them printed; all have ended well."""
    runs = list(runs)
    try:
        printed = [run.communicate(timeout=SECONDS)[0] for run in runs]
    finally:
        for run in runs:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.communicate()
    for run, text in zip(runs, printed, strict=True):
        assert run.returncode == 0, text
    return printed


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("source") / "demo-dr2"
    return rs.convert("demo", output=output, recipe="dr2-balanced", verify=False)  # its coefficients move


@pytest.fixture(scope="module")
def whole_run(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An uninterrupted run with FSDP2: the folder that it wrote to, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    (printed,) = outputs(
        [launched([*options(source, "fsdp", folder), "--output", str(folder / "finetuned")])]
    )
    return folder, printed


def halfway(run: Path, folder: Path) -> Path:
    """The checkpoints of a run as if it had been killed while it wrote that of its third step."""
    shutil.copytree(run / "step-00000002", folder / "step-00000002")
    (folder / "step-00000003").mkdir()  # not finished: .metadata is written last
    return folder


def content(checkpoint: Path) -> dict[str, Any]:
    """All of a checkpoint, in one process."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    file = checkpoint.with_suffix(".pt")
    dcp_to_torch_save(checkpoint, file)
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


def assert_same_end(actual: Path, expected: Path) -> None:
    """Every tensor and every number of the last checkpoints is the same."""
    both = [
        sorted(pytree.tree_leaves_with_path(content(run / "step-00000004")), key=lambda item: str(item[0]))
        for run in (actual, expected)
    ]
    for (path, found), (known, wanted) in zip(*both, strict=True):
        assert path == known
        assert torch.equal(found, wanted) if isinstance(wanted, torch.Tensor) else found == wanted, path


def steps(printed: str) -> list[str]:
    """What a run said of its steps."""
    return [line for line in printed.splitlines() if line.startswith("step ")]


def test_the_script_trains_under_torchrun_and_moves_the_coefficients(whole_run: tuple[Path, str]) -> None:
    _, printed = whole_run
    assert [line.split(":")[0] for line in steps(printed)] == [f"step {n}" for n in range(1, 5)]
    assert printed.rstrip().endswith("now at (0.3, 0.7)")


def test_the_finetuned_network_is_written_whole(whole_run: tuple[Path, str]) -> None:
    folder, _ = whole_run
    network = rs.load(folder / "finetuned")
    trained = content(folder / "step-00000004")["model"]
    assert trained.keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in network.state_dict().items())
    assert rs.get_coefficients(network) == (0.3, 0.7)
    assert rs.CoefficientSchedule.from_manifest(network, total_steps=4).steps_done == 4


@pytest.mark.slow
def test_a_run_resumed_with_another_strategy_ends_where_the_whole_one_does(
    whole_run: tuple[Path, str], source: Path, tmp_path: Path
) -> None:
    whole, printed = whole_run
    (said,) = outputs([launched([*options(source, "ddp", halfway(whole, tmp_path)), "--resume"])])
    assert steps(said) == steps(printed)[2:]
    assert_same_end(tmp_path, whole)


@pytest.fixture(scope="module")
def whole_ddp_run(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    outputs([launched(options(source, "ddp", folder))])
    return folder


@pytest.mark.slow
def test_both_strategies_end_at_the_same_weights(whole_run: tuple[Path, str], whole_ddp_run: Path) -> None:
    assert_same_end(whole_ddp_run, whole_run[0])


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("fsdp", "fsdp"), ("ddp", "ddp"), ("ddp", "fsdp")])
def test_any_strategy_resumes_what_any_has_written(
    whole_run: tuple[Path, str], whole_ddp_run: Path, source: Path, tmp_path: Path, before: str, after: str
) -> None:
    whole, printed = whole_run
    halfway(whole if before == "fsdp" else whole_ddp_run, tmp_path)
    (said,) = outputs([launched([*options(source, after, tmp_path), "--resume"])])
    assert steps(said) == steps(printed)[2:]
    assert_same_end(tmp_path, whole)


@pytest.mark.slow
def test_two_machines_are_each_started_by_the_same_command(
    whole_run: tuple[Path, str], source: Path, tmp_path: Path
) -> None:
    whole, printed = whole_run
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"localhost:{probe.getsockname()[1]}"
    machines = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "demo"]
    machines += ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
    said = outputs([launched(options(source, "fsdp", tmp_path), machines) for _ in range(2)])
    assert steps("".join(said)) == steps(printed)
    assert_same_end(tmp_path, whole)


@pytest.mark.parametrize("page", [SCRIPT, ROOT / "docs" / "distributed.md"], ids=lambda page: page.name)
def test_the_commands_that_are_shown_are_ones_that_the_script_takes(page: Path) -> None:
    from benchmarks.train_distributed import parsed

    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    shown = re.findall(r"torchrun .* benchmarks/train_distributed\.py (.*)", text)
    assert [parsed(shlex.split(words)).checkpoint for words in shown] == [Path("runs/demo")] * 2
