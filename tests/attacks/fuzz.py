"""Feed wrong files to the readers: python -m tests.attacks.fuzz [--count 100000] [--seed 0] [--keep DIR].

Every input must be read, or refused with a RevsurgeonError, within two seconds of the processor's time and
half a gigabyte, and nothing may be executed or written. What breaks this is counted, and kept in DIR.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from revsurgeon.artifact import Manifest, read_manifest, read_tensors
from revsurgeon.errors import RevsurgeonError
from revsurgeon.recipes import load_recipe, preset_names, preset_text
from revsurgeon.recipes.strict_yaml import dump_yaml
from tests.attacks.mutations import as_json, changed_bytes, changed_structure
from tests.attacks.sealed import forbid

SECONDS = 2
MEMORY = 512 << 20


class TooSlowError(BaseException):
    """An input took longer than it may."""


Attack = Callable[[random.Random], tuple[str, bytes]]


class Targets:
    """The readers, each with what it is fed; `seconds` that one may take, and the exit `codes` of a refusal.

    Args:
        folder: where inputs are written, on a file system in memory if possible.
        artifact: a directory with a sound artifact in several shards; a whole one lies beside it, as `whole`.
    """

    seconds, codes = SECONDS, (2,)

    def __init__(self, folder: Path, whole: Path, sharded: Path) -> None:
        self.folder = folder
        self.whole, self.sharded = whole, sharded
        self.manifest: dict[str, Any] = json.loads(read_manifest(whole).to_json())
        self.yaml = read_manifest(whole).to_yaml().encode()
        self.recipes = [preset_text(name).encode() for name in preset_names()]
        self.recipe_data = [load_recipe(name).model_dump(mode="json") for name in preset_names()]
        self.raw = (whole / "model.safetensors").read_bytes()
        length = int.from_bytes(self.raw[:8], "little")
        self.header: dict[str, Any] = json.loads(self.raw[8 : 8 + length])
        self.data = self.raw[8 + length :]
        self.index = (sharded / "model.safetensors.index.json").read_bytes()
        self.shards = [file for file in sharded.iterdir() if file.suffix == ".safetensors"]

    def all(self) -> dict[str, tuple[int, Callable[[random.Random], bytes], Callable[[bytes], object]]]:
        """By name: how often of 100, what makes an input, what reads it."""
        return {
            "recipe, bytes": (8, lambda r: changed_bytes(r.choice(self.recipes), r), self.read_recipe),
            "recipe, structure": (7, self.make_recipe, self.read_recipe),
            "manifest, bytes": (15, lambda r: changed_bytes(as_json(self.manifest), r), self.read_json),
            "manifest, structure": (
                30,
                lambda r: as_json(changed_structure(self.manifest, r)),
                self.read_json,
            ),
            "manifest.yaml, bytes": (2, lambda r: changed_bytes(self.yaml, r), self.read_yaml),
            "manifest.yaml, structure": (1, self.make_yaml, self.read_yaml),
            "weight file, bytes": (15, lambda r: changed_bytes(self.raw, r), self.read_whole),
            "weight file, header": (15, self.make_header, self.read_whole),
            "index": (7, self.make_index, self.read_sharded),
        }

    def make_recipe(self, chance: random.Random) -> bytes:
        """A recipe with another structure, as YAML."""
        return _yaml(changed_structure(chance.choice(self.recipe_data), chance))

    def make_yaml(self, chance: random.Random) -> bytes:
        """A manifest with another structure, as YAML."""
        return _yaml(changed_structure(self.manifest, chance))

    def make_header(self, chance: random.Random) -> bytes:
        """A weight file with another structure of its header, or of the manifest in it."""
        header = dict(self.header)
        if chance.random() < 0.5:
            text = as_json(changed_structure(self.manifest, chance)).decode()
            header["__metadata__"] = {**header["__metadata__"], "revsurgeon": text}
        else:
            header = changed_structure(header, chance)
        text_of_header = as_json(header)
        return len(text_of_header).to_bytes(8, "little") + text_of_header + self.data

    def make_index(self, chance: random.Random) -> bytes:
        """An index with other bytes or another structure."""
        if chance.random() < 0.5:
            return changed_bytes(self.index, chance)
        return as_json(changed_structure(json.loads(self.index), chance))

    def read_recipe(self, raw: bytes) -> object:
        """As `revsurgeon recipes validate` does."""
        file = self.folder / "recipe.yaml"
        file.write_bytes(raw)
        return load_recipe(file)

    def read_json(self, raw: bytes) -> object:
        """As it is read out of a header, whose text is UTF-8 by then."""
        return Manifest.from_json(raw.decode("utf-8", "replace"), "header")

    def read_yaml(self, raw: bytes) -> object:
        """As it is read out of manifest.yaml."""
        return Manifest.from_yaml(raw.decode("utf-8", "replace"), "manifest.yaml")

    def read_whole(self, raw: bytes) -> object:
        """As `load` reads an artifact of one file."""
        directory = self.folder / "whole"
        directory.mkdir(exist_ok=True)
        (directory / "model.safetensors").write_bytes(raw)
        return read_tensors(directory, read_manifest(directory))

    def read_sharded(self, raw: bytes) -> object:
        """As `load` reads one of several files."""
        directory = self.folder / "sharded"
        if not directory.exists():
            directory.mkdir()
            for shard in self.shards:
                (directory / shard.name).write_bytes(shard.read_bytes())
        (directory / "model.safetensors.index.json").write_bytes(raw)
        return read_tensors(directory, read_manifest(directory))


def _yaml(value: Any) -> bytes:
    try:
        return dump_yaml(value).encode("utf-8", "surrogatepass")
    except (UnicodeEncodeError, ValueError):
        return as_json(value)


def fuzz(
    targets: Targets, count: int, seed: int, keep: Path | None = None, every: int = 20_000
) -> Counter[str]:
    """Try so many inputs; how many of which kind were read, refused, or broke a promise."""
    chance = random.Random(seed)
    kinds = targets.all()
    names, weights = list(kinds), [kind[0] for kind in kinds.values()]
    outcomes: Counter[str] = Counter()
    forbidden = forbid(targets.folder)
    for number in range(count):
        name = chance.choices(names, weights)[0]
        raw = kinds[name][1](chance)
        forbidden.clear()
        outcome = _outcome(functools.partial(kinds[name][2], raw), targets)
        if forbidden:
            outcome = f"BROKEN: it did {forbidden[0]}"
        outcomes[f"{name}: {outcome.partition(chr(10))[0]}"] += 1
        if outcome.startswith("BROKEN"):
            print(f"--- {name}, input {number} of seed {seed}\n{outcome}", flush=True)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{seed}-{number}").write_bytes(raw)
        if (number + 1) % every == 0:
            print(json.dumps({"inputs": number + 1, "broken": broken(outcomes)}), flush=True)
    return outcomes


def broken(outcomes: Counter[str]) -> int:
    """How many inputs broke a promise."""
    return sum(times for outcome, times in outcomes.items() if "BROKEN" in outcome)


def _outcome(read: Callable[[], object], targets: Targets) -> str:
    signal.setitimer(signal.ITIMER_VIRTUAL, targets.seconds)
    try:
        read()
        return "read"
    except RevsurgeonError as error:
        text = str(error)
        if error.exit_code not in targets.codes or not error.what or len(text) > 10_000:
            return f"BROKEN: exit code {error.exit_code}, {len(text)} characters"
        return "refused"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"BROKEN: {type(error).__name__}\n{traceback.format_exc(limit=-4)}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def too_slow(*_: object) -> None:
    """What the timer's signal calls."""
    raise TooSlowError


def main() -> None:
    """Print what broke a promise, and at the end how many inputs there were of what."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--load", action="store_true", help="Load whole artifacts, some ten a second.")
    options = parser.parse_args()
    from tests.attacks.loading import Loading
    from tests.attacks.small_artifacts import write_small

    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        targets: Targets
        if options.load:
            targets = Loading(Path(folder))
        else:
            targets = Targets(Path(folder), *write_small(Path(folder) / "sound"))
        memory_limit = MEMORY * (4 if options.load else 1)
        signal.signal(signal.SIGVTALRM, too_slow)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory_limit, used + memory_limit))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.monotonic()
        every = 100 if options.load else 20_000
        outcomes = fuzz(targets, options.count, options.seed, options.keep, every)
        taken = time.monotonic() - start
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps(dict(sorted(outcomes.items())), indent=2))
        print(
            f"{options.count} inputs of seed {options.seed} in {taken:.0f} s, {grown >> 10} MiB more; ",
            end="",
        )
        print(f"{broken(outcomes)} broke a promise")
    sys.exit(1 if broken(outcomes) else 0)


if __name__ == "__main__":
    main()
