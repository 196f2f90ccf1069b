"""How much memory a training step takes: predicted without a GPU and without weights, and measured.

`estimate` is `revsurgeon.estimate_memory`. `skeleton` makes a network without memory, `strategies` are the
ways to train it, `step` is one training step, `tracker` counts what is alive in it, `simulation` puts these
together, `fit` searches the largest size that fits, `measure` and `bench` do the same step for real.
Importing this does not import torch.
"""

from revsurgeon.memory.plan import MemoryPlan

__all__ = ["MemoryPlan"]
