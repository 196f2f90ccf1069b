"""What hypothesis draws random networks from."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.strange.networks import ACTIVATIONS, BlockPlan, BranchPlan, NetworkPlan, tidied

BODIES = ("mlp", "attention", "fused attention", "convolution", "mixing", "gated", "recurrent", "nothing")
ADDITIONS = ("x + f", "f + x", "torch.add", "alpha", "x += f", "f += x", "f.add_(x)", "minus", "sum")
SCALES = ("none", "constant", "layer scale", "rezero", "skip constant")
DROPOUTS = ("none", "module", "function", "path", "channels", "noise")
ODDITIES = (
    "none",
    "shape",
    "counter",
    "average",
    "skipped at random",
    "early return",
    "shape later",
)

branches = st.builds(
    BranchPlan,
    body=st.sampled_from(BODIES),
    norm=st.sampled_from(("layer", "rms", "batch", "group", "none")),
    place=st.sampled_from(("pre", "post", "branch")),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    add=st.sampled_from(ADDITIONS),
    scale=st.sampled_from(SCALES),
    dropout=st.sampled_from(DROPOUTS),
    turned=st.booleans(),
)
blocks = st.builds(
    BlockPlan,
    branches=st.lists(branches, min_size=1, max_size=2).map(tuple),
    parallel=st.booleans(),
    output=st.sampled_from(("tensor", "tuple", "pair", "named", "dictionary")),
    arguments=st.sampled_from(("none", "mask", "bias", "list", "flag")),
    oddity=st.sampled_from(ODDITIES),
)
networks = st.builds(
    NetworkPlan,
    images=st.booleans(),
    width=st.sampled_from((4, 8)),
    block=blocks,
    depth=st.integers(2, 5),
    stages=st.integers(1, 2),
    shared=st.booleans(),
    tap=st.booleans(),
    container=st.sampled_from(("list", "sequential", "attributes", "nested")),
    frozen=st.booleans(),
    odd_block=st.none() | blocks,
).map(tidied)
