"""Trace one block with torch.fx, on example values, into a graph over the live block.

Unlike plain symbolic tracing, every proxy here carries the value that it had on the example
inputs. Sizes stay symbolic (so that a graph serves any batch size) until Python code decides
something by them; then the example decides, and the trace is marked as *specialised*: valid
for inputs of exactly these shapes. What depends on the data itself ends the trace.
"""

from __future__ import annotations

import builtins
import contextlib
import copy
import operator
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.checkpoint
from torch import fx, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from revsurgeon.anatomy.kept import Kept, all_entries, changed, entries, kept_by_call, kept_by_code
from revsurgeon.anatomy.probe import attributes_kept, has_hooks
from revsurgeon.anatomy.proxies import CONSTANT_TYPES, TraceError, ValueProxy, expanded
from revsurgeon.anatomy.structures import plain, structure_of

# Module.__call__ and Module.__getattr__ are patched while a trace runs.
_PATCH_LOCK = threading.RLock()


class _ListChangedError(Exception):
    """A module that was called as one node has changed a list or dictionary among its arguments."""


@dataclass
class Trace:
    """The graph of one block.

    Attributes:
        graph: nodes carry ``meta["value"]`` (the example value), ``meta["scope"]`` (the path of the
            inlined submodule that made it), ``meta["mutates"]`` (nodes whose value it changed in place)
            and ``meta["random"]`` (it drew random numbers without depending on an input).
        leaves: the placeholder of every tensor among the flattened ``(args, kwargs)``, by its first index.
        specialised: Python code decided something by a size, so the graph holds for these shapes only.
        inlined: paths of all modules whose code was inlined.
        kept: what code keeps on its modules.
    """

    graph: fx.Graph
    leaves: dict[int, fx.Node]
    specialised: bool
    inlined: frozenset[str]
    kept: Kept


class _Factories(TorchFunctionMode):
    """Records calls such as ``torch.arange(n)`` which no proxy takes part in."""

    def __init__(self, tracer: BlockTracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.tracer.evaluating or any(isinstance(leaf, fx.Proxy) for leaf in _leaves((args, kwargs))):
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if (
            isinstance(result, torch.Tensor)
            and callable(func)
            and not isinstance(func, type(object.__init__))
        ):
            return self.tracer.create_proxy("call_function", func, args, kwargs)
        return result


class _Random(TorchDispatchMode):
    """Notes whether an operation draws random numbers."""

    drew = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.drew = self.drew or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


class BlockTracer(fx.Tracer):
    """Follows one call of one block.

    Args:
        block: the module; it is read, never changed.
        inline: None to inline every module outside torch.nn, else the paths to inline.
    """

    def __init__(self, block: nn.Module, inline: frozenset[str] | None) -> None:
        super().__init__()
        self.root = block
        self.graph = fx.Graph(tracer_cls=type(self))
        self.inline = inline
        self.inlined: set[str] = set()
        self.specialised = False
        self.evaluating = False
        self.known: list[tuple[fx.Node, torch.Tensor]] = []  # every tensor so far, by the node that holds it
        self.kept: Kept = []
        self.place = ""
        self.modes = _modes()
        self.tensor_paths: dict[int, str] = {}
        self.module_paths: dict[int, str] = {}
        for path, module in block.named_modules():
            self.module_paths.setdefault(id(module), path)
            prefix = f"{path}." if path else ""
            owned: Mapping[str, Any] = {**module._parameters, **module._buffers, **module.__dict__}
            for name, tensor in owned.items():
                if isinstance(tensor, torch.Tensor):
                    self.tensor_paths.setdefault(id(tensor), prefix + name)

    # -- values ------------------------------------------------------------------------------

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """The proxy type of this tracer (called by torch.fx)."""
        return ValueProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """Add a node and work out its example value."""
        if kind not in ("placeholder", "output") and self.evaluating:
            raise TraceError("a proxy met an operation inside a leaf module")
        if _modes() != self.modes and any(map(_may_need_gradient, _leaves((args, kwargs)))):
            # A graph has no place for such a region: its operations would run like all others.
            raise TraceError("it computes under torch.no_grad(), torch.autocast() or another mode of its own")
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        proxy.node.meta["scope"] = self.place
        if kind not in ("placeholder", "output"):
            self._evaluate(proxy.node)
        return proxy

    def create_arg(self, a: Any) -> Any:
        """Turn an argument into graph form; a tensor must be one that the block owns."""
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, torch.Tensor):
            path = self.tensor_paths.get(id(a))
            if path is None:
                raise TraceError("a tensor that neither the block nor its arguments own is used")
            return self.create_proxy("get_attr", path, (), {}).node
        return super().create_arg(a)

    def _evaluate(self, node: fx.Node) -> None:
        def value(argument: Any) -> Any:
            return fx.node.map_arg(argument, lambda n: n.meta["value"])

        args, kwargs = plain(value(node.args)), plain(value(node.kwargs))
        before = [tensor._version for _, tensor in self.known]
        self.evaluating = True
        try:
            with torch.no_grad(), _Random() as random:
                # The types are not told to mypy: node.op says what node.target is.
                if node.op == "get_attr":
                    result = operator.attrgetter(node.target)(self.root)  # type: ignore[arg-type]
                elif node.op == "call_module":
                    module = self.root.get_submodule(node.target)  # type: ignore[arg-type]
                    handed, entries_before = plain((args, kwargs)), all_entries(module)
                    result = module.forward(*args, **kwargs)
                    if structure_of((args, kwargs)) != structure_of(handed):
                        raise _ListChangedError
                    if any(changed(module, entries_before)):
                        self.kept += kept_by_call(node, module, args, kwargs)
                elif node.op == "call_method":
                    result = getattr(args[0], node.target)(*args[1:], **kwargs)  # type: ignore[arg-type]
                else:
                    result = node.target(*args, **kwargs)  # type: ignore[operator]
        finally:
            self.evaluating = False
        node.meta["value"] = result
        node.meta["random"] = random.drew
        node.meta["mutates"] = [
            n for (n, t), version in zip(self.known, before, strict=True) if t._version != version
        ]
        self.note(node)

    def note(self, node: fx.Node) -> None:
        """Remember the tensors of a node's value, to see when one is changed in place."""
        self.known += [(node, tensor) for tensor in _tensors(node.meta["value"])]

    # -- modules -----------------------------------------------------------------------------

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a submodule stays one call in the graph."""
        if self.inline is None:
            return super().is_leaf_module(m, module_qualified_name)
        return module_qualified_name not in self.inline

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Inline a submodule's code, or keep the call as one node."""
        if self.evaluating:
            return forward(*args, **kwargs)
        path = self.module_paths.get(id(m))
        if path is None:
            raise TraceError(f"a module that the block does not own is called: {type(m).__name__}")
        if self.inline is not None and path in self.inline and has_hooks(m):
            raise TraceError(f"{path!r} has hooks, which would not run: its code is a part of the segments")
        if not self.is_leaf_module(m, path) and not has_hooks(m):
            outside, nodes, specialised = self.place, len(self.graph.nodes), self.specialised
            self.place = path
            try:
                result = forward(*args, **kwargs)
            except Exception:
                if self.inline is not None:
                    raise
                erased = list(self.graph.nodes)[nodes:]
                for node in reversed(erased):
                    self.graph.erase_node(node)
                self.known = [(node, tensor) for node, tensor in self.known if node not in erased]
                self.specialised = specialised
            else:
                self.inlined.add(path)
                return result
            finally:
                self.place = outside
        before = len(self.graph.nodes)
        try:
            return self.create_proxy("call_module", path, args, kwargs)
        except _ListChangedError:  # as one call it would change a list of values, and nobody would see it
            for node in reversed(list(self.graph.nodes)[before:]):
                self.graph.erase_node(node)
        if has_hooks(m):
            raise TraceError(f"{path!r} changes a list that it is handed, and has hooks")
        outside, self.place = self.place, path
        try:
            result = forward(*args, **kwargs)
        finally:
            self.place = outside
        self.inlined.add(path)
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A parameter or buffer read by traced code becomes a node over the live block."""
        if self.evaluating or not isinstance(attr_val, torch.Tensor):
            return attr_val
        path = self.tensor_paths.get(id(attr_val))
        return attr_val if path is None else self.create_proxy("get_attr", path, (), {})


def trace_block(
    block: nn.Module,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    inline: frozenset[str] | None = None,
) -> Trace:
    """Follow ``forward(*args, **kwargs)`` of a block.

    Args:
        block: the module whose graph is wanted.
        forward: its own forward, bound; not the rewired one.
        args: example arguments; every tensor in them becomes an input of the graph, and so does every object
            that is not a constant (a cache, say), which the block may hand on but not look into.
        kwargs: example keyword arguments, likewise.
        inline: None to inline every module outside torch.nn, else the paths to inline.

    Returns:
        The trace. The output node's argument is the block's output as it is structured.

    Raises:
        TraceError: the code cannot be followed.
    """
    tracer = BlockTracer(block, inline)
    flat, spec = pytree.tree_flatten((args, dict(kwargs)))
    leaves: dict[int, fx.Node] = {}
    proxied: list[Any] = []
    known: dict[int, fx.Proxy] = {}  # an object that comes as several arguments is one value
    for index, leaf in enumerate(flat):
        if isinstance(leaf, CONSTANT_TYPES):
            proxied.append(leaf)
            continue
        if id(leaf) in known:
            proxied.append(known[id(leaf)])
            continue
        proxy = known[id(leaf)] = tracer.create_proxy("placeholder", f"input_{index}", (), {})
        # A copy: the traced code may work in place, and the example is needed again.
        if isinstance(leaf, torch.Tensor):
            proxy.node.meta["value"] = leaf.detach().clone(memory_format=torch.preserve_format)
        else:
            proxy.node.meta["value"] = _copy_of(leaf)
            proxy.node.meta["opaque"] = True
        tracer.note(proxy.node)
        leaves[index] = proxy.node
        proxied.append(proxy)
    proxied_args, proxied_kwargs = pytree.tree_unflatten(proxied, spec)
    # A cache that the code fills holds proxies of this trace, which the next one must not find.
    with attributes_kept(block), _patched(tracer), _Factories(tracer):
        before = {path: entries(module) for path, module in block.named_modules()}
        handed = structure_of((proxied_args, proxied_kwargs))
        try:
            output = forward(*proxied_args, **proxied_kwargs)
            tracer.create_node("output", "output", (tracer.create_arg(expanded(output)),), {})
            if structure_of((proxied_args, proxied_kwargs)) != handed:
                raise TraceError("it changes a list or a dictionary that it is handed")
            nodes = set(tracer.graph.nodes)  # some were erased
            kept = [(path, node) for path, node in tracer.kept if node is None or node in nodes]
            for path in ("", *sorted(tracer.inlined)):
                kept += kept_by_code(path, block.get_submodule(path), before[path])
        except Exception as error:
            frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
            if torch.utils.checkpoint.__file__ in frames:
                raise TraceError(
                    "it checkpoints activations (torch.utils.checkpoint): turn that off"
                ) from error
            if isinstance(error, TraceError):
                raise
            raise TraceError(_first_line(error)) from error
    return Trace(tracer.graph, leaves, tracer.specialised, frozenset(tracer.inlined), kept)


def _copy_of(argument: object) -> object:
    """A copy of an object whose tensors are real ones, for the trace to change."""
    try:
        with unset_fake_temporarily():
            return copy.deepcopy(argument)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise TraceError(f"an argument cannot be copied: {_first_line(error)}") from error


@contextlib.contextmanager
def _patched(tracer: BlockTracer) -> Iterator[None]:
    """Route calls of modules and reads of their tensors through the tracer.

    Python code also asks ``isinstance(x, torch.Tensor)``. A proxy that lied about its ``__class__`` would
    satisfy the checks of torch's C++ code too, and crash it; so the built-in answers for proxies instead.
    """
    call, read, is_instance = nn.Module.__call__, nn.Module.__getattr__, builtins.isinstance

    def traced_isinstance(value: Any, kind: Any) -> bool:
        if type(value) is ValueProxy and not tracer.evaluating:
            return is_instance(value, kind) or is_instance(value.node.meta["value"], kind)
        return is_instance(value, kind)

    def traced_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return tracer.call_module(module, lambda *a, **k: module.forward(*a, **k), args, kwargs)

    def traced_read(module: nn.Module, name: str) -> Any:
        return tracer.getattr(name, read(module, name), {})

    with _PATCH_LOCK:
        nn.Module.__call__ = traced_call  # type: ignore[method-assign]
        nn.Module.__getattr__ = traced_read  # type: ignore[method-assign]
        builtins.isinstance = traced_isinstance
        try:
            yield
        finally:
            nn.Module.__call__ = call  # type: ignore[method-assign]
            nn.Module.__getattr__ = read  # type: ignore[method-assign]
            builtins.isinstance = is_instance


def _modes() -> tuple[bool, bool, int]:
    """Whether gradients are enabled, inference mode, and how many autocast contexts are open."""
    torch.autocast_increment_nesting()
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.autocast_decrement_nesting()


def _may_need_gradient(leaf: Any) -> bool:
    if isinstance(leaf, ValueProxy):
        return any(map(_may_need_gradient, _tensors(leaf.value)))
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def _leaves(tree: Any) -> list[Any]:
    return pytree.tree_leaves(tree)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (tuple, list, dict)):
        return [leaf for leaf in _leaves(value) if isinstance(leaf, torch.Tensor)]
    return []


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
