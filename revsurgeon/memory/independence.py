"""Along which dimension a segment may be run piece by piece, told from its operators alone.

A real run finds this by trying values (rewiring/chunking.py). Without values, the place of every element
along the dimension is followed through the segment's operators instead. An operator that is not known here,
or that mixes places, ends it: then the segment counts as one that has to be run whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from revsurgeon.anatomy.probe import untouched
from revsurgeon.reversible.coefficients import chains
from revsurgeon.reversible.record import SegmentCall
from revsurgeon.rewiring.block import PlannedSegment, RewiredForward
from revsurgeon.rewiring.unrewired import calls_of, replaced_forwards, rewired_forwards, stream_of

Tag = tuple[int, int]
"""Where the place of an element is found: (dimension, step): its index there, divided by step."""


class MixedError(Exception):
    """The places cannot be told apart any more."""


def set_dimensions(network: nn.Module, forward: Callable[[], None]) -> None:
    """Settle for all segments of a rewired network how they are cut, for the sizes that `forward` runs at.

    Args:
        network: rewired, with fake tensors.
        forward: runs it once.
    """
    found: dict[Any, int | None] = {}
    chunks = [(chain, chain.chunks) for chain in chains(network)]
    for chain, _ in chunks:
        chain.chunks = 1
    try:
        with replaced_forwards({r: _settling(r, found) for r in rewired_forwards(network)}):
            forward()
    finally:
        for chain, count in chunks:
            chain.chunks = count


def _settling(rewired: RewiredForward, found: dict[Any, int | None]) -> Callable[..., Any]:
    """The forward of a block that settles its segments when it has run."""

    def run(*args: Any, **kwargs: Any) -> Any:
        result = rewired(*args, **kwargs)
        x = stream_of(rewired, args, kwargs)
        calls, _ = calls_of(rewired, args, kwargs)
        segments = {id(s.memory): s for plan in rewired._plans.values() for s in plan.segments}
        for call in calls:
            _settle(segments[id(call.memory)], call, x, rewired.chain.alpha, found)
        return result

    return run


def _settle(
    segment: PlannedSegment, call: SegmentCall, x: torch.Tensor, alpha: float, found: dict[Any, int | None]
) -> None:
    def find(whole: SegmentCall) -> int | None:
        # What looks alike is alike: the same code over modules of the same kinds and sizes.
        alike = (segment.function.__code__, repr(whole.modules()), x.shape)
        if alike not in found:
            found[alike] = independent_dimension(whole, x, alpha)
        return found[alike]

    segment.dimension_of(call, x, find)


def independent_dimension(call: SegmentCall, x: torch.Tensor, alpha: float) -> int | None:
    """The first dimension of the stream, the batch being the last resort, whose places stay apart.

    Args:
        call: a segment that reads and gives out nothing beside the stream.
        x: what it is called with, fake.
        alpha: coefficient of the original skip.
    """
    with torch.no_grad(), untouched(call.block):
        for dimension in (*range(1, x.ndim), 0):
            size = x.shape[dimension]
            if size < 2:
                continue
            stream = x.detach().clone()
            places = Places(stream, dimension)
            try:
                with places:
                    result = call.function(call.block, stream, alpha)
                if places.tag_of(result) == (dimension, 1) and result.shape == x.shape:
                    return dimension
            except (MixedError, RuntimeError, ValueError, IndexError):
                continue
    return None


class Places(TorchDispatchMode):
    """Follows places along a dimension of the stream from operator to operator."""

    def __init__(self, x: torch.Tensor, dimension: int) -> None:
        super().__init__()
        self.size = x.shape[dimension]
        self.dimension = dimension
        self._tags: dict[int, tuple[torch.Tensor, Tag]] = {id(x): (x, (dimension, 1))}

    def tag_of(self, tensor: torch.Tensor) -> Tag | None:
        """Where the places are in a tensor; None if it has nothing of the stream."""
        found = self._tags.get(id(tensor))
        return None if found is None else found[1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, (tuple, list)) and result else result
        if not isinstance(first, torch.Tensor):
            return result  # a device, a size
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        name = func.overloadpacket.__name__
        random = torch.Tag.nondeterministic_seeded in func.tags
        if random and not (first.ndim > self.dimension and first.shape[self.dimension] == self.size):
            raise MixedError  # one number for all places
        tag: Tag | None = None
        if random and name in _DRAWS:
            tag = (self.dimension, 1)
        elif name not in _NEW and any(self.tag_of(t) for t in tensors):
            tag = self._followed(func, args, kwargs or {}, tensors, first)
        if tag is not None:
            for one in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(one, torch.Tensor) and one.ndim > tag[0]:
                    self._tags[id(one)] = one, tag
        return result

    def _followed(self, func: Any, args: Any, kwargs: Any, tensors: list[torch.Tensor], out: Any) -> Tag:
        name = func.overloadpacket.__name__
        if torch.Tag.pointwise in func.tags or name in _POINTWISE:
            return self._pointwise(tensors, out)
        rule = _RULES.get(name)
        if rule is None:
            raise MixedError
        tag = rule(self, args, kwargs, out)
        if tag is None:
            raise MixedError
        return tag

    def _pointwise(self, tensors: list[torch.Tensor], out: torch.Tensor) -> Tag:
        found = set()
        for tensor in tensors:
            tag = self.tag_of(tensor)
            if tag is not None:
                found.add((tag[0] + out.ndim - tensor.ndim, tag[1]))
        if len(found) != 1:
            raise MixedError
        (tag,) = found
        for tensor in tensors:
            at = tag[0] - (out.ndim - tensor.ndim)
            if self.tag_of(tensor) is None and at >= 0 and tensor.shape[at] != 1:
                raise MixedError  # a value for each place, which pieces would take from the wrong one
        return tag


_NEW = {"new_empty", "new_zeros", "new_ones", "new_full"}
_DRAWS = {"bernoulli_", "uniform_", "normal_", "rand", "randn", "bernoulli"}
_POINTWISE = {
    "clone",
    "_to_copy",
    "native_dropout",
    "detach",
    "alias",
    "contiguous",
    "copy",
    "empty_like",
    "zeros_like",
}


def _view(places: Places, args: Any, kwargs: Any, out: Any) -> Tag | None:
    """The step between places in the flat order of elements stays, whatever the shape."""
    x = args[0]
    tag = places.tag_of(x)
    if tag is None:
        return None
    step = tag[1] * math.prod(x.shape[tag[0] + 1 :])
    inner = 1
    for dimension in reversed(range(out.ndim)):
        outer = inner * out.shape[dimension]
        if step % inner == 0 and outer % (step * places.size) == 0 and out.shape[dimension] > 1:
            return dimension, step // inner
        inner = outer
    return None


def _permute(places: Places, args: Any, kwargs: Any, out: Any) -> Tag | None:
    tag = places.tag_of(args[0])
    order = [d % out.ndim for d in args[1]]
    return None if tag is None else (order.index(tag[0]), tag[1])


def _transpose(places: Places, args: Any, kwargs: Any, out: Any) -> Tag | None:
    one, other = (0, 1) if len(args) < 3 else (args[1] % out.ndim, args[2] % out.ndim)
    tag = places.tag_of(args[0])
    if tag is None:
        return None
    return {one: other, other: one}.get(tag[0], tag[0]), tag[1]


def _product(places: Places, args: Any, kwargs: Any, out: Any) -> Tag | None:
    """Rows of the first factor, or matrices of both."""
    left, right = args[-2:]
    if len(args) == 3 and places.tag_of(args[0]) is not None:
        return None
    tag, other = places.tag_of(left), places.tag_of(right)
    if tag is None:
        return None
    if other is not None:
        return tag if left.ndim == 3 and tag == other and tag[0] == 0 else None
    return tag if tag[0] < left.ndim - 1 else None


def _along(position: int) -> Callable[[Places, Any, Any, Any], Tag | None]:
    """An operator that works along the dimensions given by its argument at `position`, which stay."""

    def rule(places: Places, args: Any, kwargs: Any, out: Any) -> Tag | None:
        tag = places.tag_of(args[0])
        if tag is None or len(args) <= position:
            return None
        given = args[position] if isinstance(args[position], Sequence) else [args[position]]
        return None if tag[0] in [d % args[0].ndim for d in given] else tag

    return rule


def _reduced(places: Places, args: Any, kwargs: Any, out: Any) -> Tag | None:
    tag = places.tag_of(args[0])
    if tag is None or len(args) < 2:
        return None
    along = [d % args[0].ndim for d in (args[1] if isinstance(args[1], Sequence) else [args[1]])]
    if tag[0] in along:
        return None
    keeps = out.ndim == args[0].ndim
    return tag if keeps else (tag[0] - sum(d < tag[0] for d in along), tag[1])


def _picked(places: Places, args: Any, kwargs: Any, out: Any) -> Tag | None:
    """select, unbind: a dimension goes."""
    tag = places.tag_of(args[0])
    along = (args[1] if len(args) > 1 else 0) % args[0].ndim
    if tag is None or tag[0] == along:
        return None
    return tag[0] - (along < tag[0]), tag[1]


def _sliced(places: Places, args: Any, kwargs: Any, out: Any) -> Tag | None:
    """slice, split: a dimension gets shorter."""
    tag = places.tag_of(args[0])
    along = args[1] if args and not isinstance(args[0], (list, tuple)) and len(args) > 1 else 0
    if tag is None:
        return None
    return None if out.shape[tag[0]] != args[0].shape[tag[0]] or along is None else tag


def _normed(places: Places, args: Any, kwargs: Any, out: Any) -> Tag | None:
    tag = places.tag_of(args[0])
    return tag if tag is not None and tag[0] < args[0].ndim - len(args[1]) else None


def _convolved(places: Places, args: Any, kwargs: Any, out: Any) -> Tag | None:
    x, weight, _, stride, padding = args[:5]
    tag = places.tag_of(x)
    if tag is None or tag[1] != 1 or tag[0] == 1 or args[6]:
        return None
    if tag[0] == 0:
        return tag
    at = tag[0] - 2
    return tag if weight.shape[tag[0]] == 1 and stride[at] == 1 and padding[at] == 0 else None


def _attended(places: Places, args: Any, kwargs: Any, out: Any) -> Tag | None:
    tags = {places.tag_of(t) for t in args[:3]}
    (tag,) = tags if len(tags) == 1 else (None,)
    mask = kwargs.get("attn_mask")
    return tag if tag is not None and tag[0] < 2 and mask is None else None


def _padded(places: Places, args: Any, kwargs: Any, out: Any) -> Tag | None:
    tag = places.tag_of(args[0])
    return tag if tag is not None and tag[0] < args[0].ndim - len(args[1]) // 2 else None


def _joined(places: Places, args: Any, kwargs: Any, out: Any) -> Tag | None:
    tags = {places.tag_of(t) for t in args[0]}
    (tag,) = tags if len(tags) == 1 else (None,)
    along = (args[1] if len(args) > 1 else 0) % out.ndim
    return tag if tag is not None and tag[0] != along else None


def _expanded(places: Places, args: Any, kwargs: Any, out: Any) -> Tag | None:
    tag = places.tag_of(args[0])
    return None if tag is None else (tag[0] + out.ndim - args[0].ndim, tag[1])


def _unsqueezed(places: Places, args: Any, kwargs: Any, out: Any) -> Tag | None:
    tag = places.tag_of(args[0])
    return None if tag is None else (tag[0] + (args[1] % out.ndim <= tag[0]), tag[1])


_RULES: dict[str, Callable[[Places, Any, Any, Any], Tag | None]] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze"), _view),
    **dict.fromkeys(("permute",), _permute),
    **dict.fromkeys(("transpose", "t"), _transpose),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _product),
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax", "cumsum"), _along(1)),
    **dict.fromkeys(("roll",), _along(2)),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var"), _reduced),
    **dict.fromkeys(("select", "unbind"), _picked),
    **dict.fromkeys(("slice", "split", "split_with_sizes", "chunk"), _sliced),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm", "rms_norm"), _normed),
    **dict.fromkeys(("convolution",), _convolved),
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_fused_attention_overrideable",
        ),
        _attended,
    ),
    **dict.fromkeys(("constant_pad_nd",), _padded),
    **dict.fromkeys(("cat",), _joined),
    **dict.fromkeys(("expand",), _expanded),
    **dict.fromkeys(("unsqueeze",), _unsqueezed),
}
