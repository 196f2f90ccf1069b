"""What torch.distributed.checkpoint writes of a sharded network is resumed, sharded or by one process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.distributed.networks import backward, batch, different, mean_of_halves, network, share, whole
from tests.distributed.processes import TwoProcesses
from tests.distributed.sharded import shard

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process has no group

TOTAL, HALF = 4, 2
"""Steps of the training, and the one behind which it is interrupted."""


@dataclass
class Standing:
    """Where a training stands."""

    tensors: dict[str, torch.Tensor]
    coefficients: list[tuple[float, float]]
    schedule: dict[str, object]


Saved = tuple[Path, Standing, Standing]
"""A checkpoint's folder, how the training stood there, and how it stood at the end."""


class Training:
    """A network, its optimizer and its schedule; ``plan`` are the arguments of the schedule."""

    def __init__(self, network: nn.Module, **plan: tuple[float, float]) -> None:
        self.network = network
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
        self.schedule = rs.CoefficientSchedule(network, total_steps=TOTAL, **plan)

    def step(self, rank: int | None) -> None:
        """One iteration of a process, or of one alone that stands for both."""
        self.optimizer.zero_grad()
        if rank is None:
            found = mean_of_halves(self.network, batch())
            for name, parameter in self.network.named_parameters():
                parameter.grad = found[name]
        else:
            backward(self.network, share(rank), rank)
        self.optimizer.step()
        self.schedule.step()

    def save(self, folder: Path) -> None:
        import torch.distributed.checkpoint as dcp

        from benchmarks.train_distributed import training_state

        state = training_state(self.network, self.optimizer, self.schedule)
        dcp.save(state, checkpoint_id=folder / f"step-{self.schedule.steps_done}")

    def resume(self, folder: Path) -> None:
        from benchmarks.train_distributed import resume

        resume(folder, self.network, self.optimizer, self.schedule)

    def standing(self) -> Standing:
        tensors = {name: whole(p) for name, p in self.network.named_parameters()}
        for name, parameter in self.network.named_parameters():
            for key, moment in self.optimizer.state[parameter].items():
                tensors[f"{name} {key}"] = whole(moment)
        coefficients = [(chain.alpha, chain.beta) for chain in rs.chains(self.network)]
        return Standing(tensors, coefficients, self.schedule.state_dict())


def uninterrupted(rank: int, network: nn.Module, folder: Path) -> tuple[Standing, Standing]:
    training = Training(shard(network), end=(0.3, 0.7))
    for _ in range(HALF):
        training.step(rank)
    training.save(folder)
    halfway = training.standing()
    for _ in range(HALF, TOTAL):
        training.step(rank)
    return halfway, training.standing()


def resumed(rank: int, network: nn.Module, folder: Path) -> tuple[Standing, Standing]:
    training = Training(shard(network))  # its schedule is in the checkpoint
    training.resume(folder)
    halfway = training.standing()
    for _ in range(HALF, TOTAL):
        training.step(rank)
    return halfway, training.standing()


def assert_same(actual: Standing, expected: Standing) -> None:
    assert different(actual.tensors, expected.tensors) == []
    assert actual.coefficients == expected.coefficients
    assert actual.schedule == expected.schedule


@pytest.fixture(scope="module")
def saved(two_processes: TwoProcesses, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The checkpoint of a sharded training."""
    folder = tmp_path_factory.mktemp("checkpoints")
    (halfway, end), _ = two_processes(uninterrupted, network(), folder)
    return folder, halfway, end


def test_the_checkpoint_is_made_while_the_coefficients_move(saved: Saved) -> None:
    _, halfway, end = saved
    start = rs.get_coefficients(network())
    assert len({start, halfway.coefficients[0], end.coefficients[0]}) == 3
    assert end.coefficients == [(0.3, 0.7)]


def test_a_resumed_sharded_training_ends_where_the_uninterrupted_one_does(
    two_processes: TwoProcesses, saved: Saved
) -> None:
    folder, *expected = saved
    for found in two_processes(resumed, network(), folder):
        for actual, wanted in zip(found, expected, strict=True):
            assert_same(actual, wanted)


def test_one_process_resumes_what_two_have_sharded(saved: Saved) -> None:
    folder, halfway, end = saved
    alone = Training(network())
    alone.resume(folder)
    assert_same(alone.standing(), halfway)
    for _ in range(HALF, TOTAL):
        alone.step(None)
    assert_same(alone.standing(), end)


def test_two_processes_shard_what_one_has_saved(
    two_processes: TwoProcesses, saved: Saved, tmp_path: Path
) -> None:
    alone = Training(network(), end=(0.3, 0.7))
    for _ in range(HALF):
        alone.step(None)
    alone.save(tmp_path)
    for found in two_processes(resumed, network(), tmp_path):
        for actual, wanted in zip(found, saved[1:], strict=True):
            assert_same(actual, wanted)


def test_coefficients_that_were_set_by_hand_and_stay_are_in_the_checkpoint(tmp_path: Path) -> None:
    held = network()
    rs.set_coefficients(held, 0.6, 0.4)
    training = Training(held)
    training.step(None)
    training.save(tmp_path)
    other = Training(network())
    assert rs.get_coefficients(other.network) != (0.6, 0.4)
    other.resume(tmp_path)
    assert rs.get_coefficients(other.network) == (0.6, 0.4)


def test_without_a_checkpoint_training_begins_at_its_beginning(tmp_path: Path) -> None:
    training = Training(network(), end=(0.3, 0.7))
    before = training.standing()
    training.resume(tmp_path)
    assert_same(training.standing(), before)


def saved_through_ddp(rank: int, network: nn.Module, folder: Path) -> None:
    wrapped = torch.nn.parallel.DistributedDataParallel(network)
    if rank == 0:
        rs.save(wrapped, folder)


def test_an_artifact_that_is_saved_through_ddp_has_the_networks_own_names(
    two_processes: TwoProcesses, tmp_path: Path
) -> None:
    two_processes(saved_through_ddp, network(), tmp_path / "wrapped")
    rs.save(network(), tmp_path / "own")
    wrapped, own = (tmp_path / name / "model.safetensors" for name in ("wrapped", "own"))
    assert wrapped.read_bytes() == own.read_bytes()
