"""Turn a recipe and an anatomy into a rewired network."""

from revsurgeon.rewiring.rewire import ChainSpec, attach, detach, rewire, rewire_with_checks, specs_of

__all__ = ["ChainSpec", "attach", "detach", "rewire", "rewire_with_checks", "specs_of"]
