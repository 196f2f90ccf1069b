"""Examine many random networks: python -m tests.strange [--count 5000] [--seed 0]."""

from __future__ import annotations

import argparse
import contextlib
import json
import traceback
import warnings
from collections import Counter

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.strange.cheaper import cheaper
from tests.strange.networks import NetworkPlan
from tests.strange.plans import networks
from tests.strange.properties import UnusableError, examine


def main() -> None:
    """Print every network that breaks a promise, and at the end how many there were of what."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    outcomes: Counter[str] = Counter()
    ways: Counter[str] = Counter()

    @seed(options.seed)
    @settings(
        max_examples=options.count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(networks, st.integers(0, 2**16))
    def one(plan: NetworkPlan, number: int) -> None:
        # Every twentieth is traced block by block and copy by copy on fake tensors, as a user's is.
        as_a_users = number % 20 == 0
        ways["as a user's" if as_a_users else "cheaper"] += 1
        try:
            with contextlib.nullcontext() if as_a_users else cheaper():
                outcome = examine(plan, number)
        except UnusableError:
            outcome = "unusable"
        except Exception:  # noqa: BLE001, all that goes wrong is what is looked for
            print(f"--- {number}: {plan}", flush=True)
            traceback.print_exc(limit=-4)
            outcome = "broken"
        outcomes[outcome.split("\n")[0]] += 1
        if sum(outcomes.values()) % 20 == 0:
            print(json.dumps(outcomes), flush=True)

    one()
    print(json.dumps({"seed": options.seed, **outcomes, "examined": ways}))


if __name__ == "__main__":
    main()
