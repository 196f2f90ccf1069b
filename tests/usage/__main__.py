"""Run many random programs: python -m tests.usage [--count 2000] [--seed 0] [--network NAME ...]."""

from __future__ import annotations

import argparse
import contextlib
import json
import traceback
import warnings
from collections import Counter

import torch

from tests.strange.cheaper import cheaper
from tests.usage.comparison import compare
from tests.usage.networks import MAKES, SMALL


def main() -> None:
    """Print every program whose values are wrong, and at the end how many there were of what."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--network", action="append", choices=list(MAKES))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    outcomes: Counter[str] = Counter()
    names = options.network or list(MAKES)
    for seed in range(options.seed, options.seed + options.count):
        try:
            name = names[seed % len(names)]
            # Every twentieth is traced copy by copy, as a user's is.
            with cheaper() if name in SMALL and seed % 20 else contextlib.nullcontext():
                outcome = compare(name, seed, "float" if seed % 7 == 0 else "exact")
        except Exception:  # noqa: BLE001, all that goes wrong is what is looked for
            traceback.print_exc(limit=-4)
            outcome = "wrong"
        outcomes[outcome] += 1
        if (seed + 1) % 100 == 0:
            print(json.dumps(outcomes), flush=True)
    print(json.dumps({"seed": options.seed, **outcomes}))


if __name__ == "__main__":
    main()
