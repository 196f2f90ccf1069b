"""Kill commands at random and at counted moments: python -m tests.faults.kills [--count 300] [--seed 0].

convert, errmap, verify --stamp, save and push are killed (SIGKILL) in turn, half of them at a random moment
and half before a random one of the system calls that change a file. After each kill, what was there before is
there bit for bit, or what the command makes is there whole; nothing half made loads; the next run succeeds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

import revsurgeon as rs
from revsurgeon.checks.stamp import stamp
from revsurgeon.errors import ArtifactError
from tests import hub_server
from tests.artifact.processes import contents, exit_code, fork, killed_before_call, made_calls
from tests.hub_server import GOOD_TOKEN

COMMANDS = ("convert", "save", "stamp", "errmap", "push")
REPOSITORY = "someone/demo"
GRID = 3


@dataclass
class Command:
    """A command to kill.

    Attributes:
        run: does all of it.
        reset: puts back what was there before it.
        check: asserts that everything is old or new; returns which.
        calls, seconds: how much there is of it, once it was measured.
    """

    run: Callable[[], object]
    reset: Callable[[], object]
    check: Callable[[], str]
    calls: int = 0
    seconds: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)

    def measure(self) -> None:
        """Run it whole, twice: how many calls it makes, and how long it takes without their being counted."""
        self.reset()
        self.calls = made_calls(self.run)
        self.reset()
        began = time.monotonic()
        assert exit_code(fork(self.run)) == 0
        self.seconds = time.monotonic() - began
        assert self.check() == "new"

    def kill(self, chance: random.Random) -> None:
        """Kill it once and look at what is left; then let it run whole over that, now and then."""
        self.reset()
        if chance.random() < 0.5:
            code = killed_before_call(chance.randrange(self.calls), self.run)
        else:
            child = fork(self.run)
            time.sleep(chance.uniform(0, self.seconds))
            os.kill(child, signal.SIGKILL)
            code = exit_code(child)
        state = self.check()
        if code != -signal.SIGKILL:
            self.ends["came too late"] += 1
            return
        self.ends[state] += 1
        if chance.random() < 0.1:
            assert exit_code(fork(self.run)) == 0
            assert self.check() == "new"
            self.ends["run again"] += 1


class Place:
    """A folder with an artifact and a Hub, and the commands in it."""

    def __init__(self, folder: Path, hub: hub_server.HubServer) -> None:
        self.folder, self.hub = folder, hub
        kept = folder / "kept"
        self.old = rs.convert("demo", mode="re2", output=kept / "old" / "out", verify=False)
        self.new = rs.convert(
            "demo", output=kept / "new" / "out", verify=False, start=(0.9, 0.1), arithmetic="exact"
        )
        self.report = rs.verify(self.new, seeds=1, only=["integrity"])
        self.tuned = rs.load(self.old)
        with torch.no_grad():
            next(self.tuned.parameters()).add_(1)
        self.output = folder / "work" / "out"

    def commands(self, only: Collection[str]) -> dict[str, Command]:
        """By name."""
        folders: dict[str, tuple[Callable[[], object], Path]] = {
            "convert": (
                lambda: rs.convert(
                    "demo", output=self.output, force=True, verify=False, start=(0.9, 0.1), arithmetic="exact"
                ),
                self.old,
            ),
            "save": (lambda: rs.save(self.tuned, self.output, force=True), self.old),
            "stamp": (lambda: stamp(self.output, self.report), self.new),
        }
        makers: dict[str, Callable[[], Command]] = {
            name: partial(self._on_a_folder, run, before) for name, (run, before) in folders.items()
        }
        makers |= {"errmap": self._errmap, "push": self._push}
        return {name: makers[name]() for name in only}

    def _on_a_folder(self, run: Callable[[], object], before: Path) -> Command:
        def reset() -> None:
            shutil.rmtree(self.output.parent, ignore_errors=True)
            shutil.copytree(before, self.output)

        reset()
        old = contents(self.output)
        assert exit_code(fork(run)) == 0
        new = contents(self.output)
        assert new != old

        def check() -> str:
            for left in self.output.parent.iterdir():
                if left != self.output and left.is_dir():
                    self._refused(left)
            there = contents(self.output)
            assert there in (old, new)
            assert rs.chains(rs.load(self.output))
            return "new" if there == new else "old"

        return Command(run, reset, check)

    def _refused(self, directory: Path) -> None:
        for path in (directory, *directory.glob("*.safetensors")):
            try:
                rs.load(path)
            except ArtifactError:
                continue
            raise AssertionError(f"{path} can be loaded")

    def _errmap(self) -> Command:
        """A map grows: every point that it has is one of the whole map, and --resume completes it."""
        stem = self.folder / "map"

        def run(resume: bool = True) -> object:
            return rs.errmap(self.old, grid=GRID, output=stem, resume=resume)

        def reset() -> None:
            for file in self.folder.glob("*map*"):
                file.unlink()

        reset()
        assert exit_code(fork(run)) == 0
        whole = json.loads((self.folder / "map.json").read_text())
        artifact = contents(self.old)

        def check() -> str:
            assert contents(self.old) == artifact
            file = self.folder / "map.json"
            if not file.exists():
                return "old"
            found = json.loads(file.read_text())
            assert all(point in whole["points"] for point in found["points"])
            return "new" if found["points"] == whole["points"] else "old"

        return Command(run, reset, check)

    def _push(self) -> Command:
        """The branch has the one commit or the other, whole, and the files here are as they were."""
        here = contents(self.new)
        names = set(here)

        def there() -> dict[str, bytes]:
            repository = self.hub.repositories[REPOSITORY]
            return repository.commits[repository.refs["main"]]

        def reset() -> None:
            self.hub.repositories.pop(REPOSITORY, None)
            self.hub.storage.clear()
            self.hub.add(REPOSITORY, {"notes.txt": b"mine", "model.safetensors": b"other weights"})

        def check() -> str:
            assert contents(self.new) == here
            found = there()
            assert found["notes.txt"] == b"mine"
            if set(found) == {"notes.txt", "model.safetensors"}:
                assert found["model.safetensors"] == b"other weights"
                return "old"
            assert set(found) == names | {"notes.txt"}
            assert all(found[name] == here[name] for name in names - {"README.md"})
            return "new"

        return Command(lambda: rs.push(self.new, REPOSITORY), reset, check)


def kill_all(
    folder: Path,
    count: int,
    seed: int,
    each: Callable[[int], object] = lambda done: None,
    only: Collection[str] = COMMANDS,
) -> dict[str, Command]:
    """Kill commands in turn until there were so many kills; the commands, with how each kill ended."""
    chance = random.Random(seed)
    os.environ.update({"HF_TOKEN": GOOD_TOKEN})
    with hub_server.running() as hub:
        hub_server.point_client_at(hub, folder / "hf", _Setter())
        os.environ["HF_TOKEN"] = GOOD_TOKEN
        commands = Place(folder, hub).commands(only)
        for command in commands.values():
            command.measure()
        done = 0
        while done < count:
            for command in commands.values():
                command.kill(chance)
            done = sum(command.ends["old"] + command.ends["new"] for command in commands.values())
            each(done)
    return commands


class _Setter:
    """What a test's monkeypatch does, for a process of its own."""

    def setattr(self, place: object, name: str, value: object) -> None:
        """Set an attribute for good."""
        setattr(place, name, value)

    def delenv(self, name: str, raising: bool = True) -> None:
        """Remove a variable."""
        os.environ.pop(name, None)


def main() -> None:
    """Print how the kills ended; an assertion names what was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    with tempfile.TemporaryDirectory() as folder:
        commands = kill_all(
            Path(folder), options.count, options.seed, lambda done: print(f"{done} kills", file=sys.stderr)
        )
    told = {name: {"system calls": command.calls, **command.ends} for name, command in commands.items()}
    print(json.dumps(told, indent=2))
    killed = sum(command.ends["old"] + command.ends["new"] for command in commands.values())
    print(f"{killed} kills of seed {options.seed}, nothing lost")


if __name__ == "__main__":
    main()
