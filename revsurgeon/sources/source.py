"""A source: how to get a network, and the record of what it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict

from revsurgeon.sources.inputs import InputSpec
from revsurgeon.sources.reference import Kind

if TYPE_CHECKING:
    from torch import nn


class Build(TypedDict):
    """How to construct the bare architecture again, without network; plain JSON.

    `entry` is a timm or torchvision model name, a transformers class name, or `module:factory`.
    """

    library: Literal["timm", "transformers", "torchvision", "python"]
    entry: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Provenance:
    """Where a network came from, in plain JSON types.

    Attributes:
        spec: the source as the user wrote it.
        repo_id, revision, commit: of a Hub repository; revision as asked for, commit as resolved.
        files: sha256 of every config and weights file that was used, by name inside the source.
        libraries: versions of the libraries that took part.
        weights: whether weights were loaded or drawn at random.
    """

    spec: str
    kind: Kind
    repo_id: str | None = None
    revision: str | None = None
    commit: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=dict)
    weights: Literal["pretrained", "random"] = "pretrained"

    def to_dict(self) -> dict[str, Any]:
        """Return this record as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Provenance:
        """Return the record that `to_dict` wrote."""
        return cls(**record)


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, and what only loading them could tell.

    Attributes:
        module: the network, in eval mode.
        files: sha256 of the files that were read, by name inside the source.
        notes: what the user should know, for example a head that was newly initialised.
        dtype: the floating dtype of the weights, where it is one; None leaves the inputs as they were.
        commit: of the Hub repository that only the weights come from.
    """

    module: nn.Module
    files: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    dtype: str | None = None
    commit: str | None = None


class Loader(Protocol):
    """What one kind of source has to be able to do. A new kind of source is one class of this form."""

    def architecture(self) -> nn.Module:
        """Return the network on the meta device: no weights, no memory, no network."""

    def load(self) -> Loaded:
        """Return the network on the CPU with its weights."""


@dataclass
class Source:
    """A network that can be built, with or without its weights.

    `provenance.files`, `notes` and the dtype of `inputs` are complete once `module()` has loaded the
    weights; until then they hold what the config alone tells, so that inspection downloads no weights.

    Attributes:
        name: short, and fit for a file's name: `videomae-small`.
        build: how to construct the architecture again, for `build_architecture`.
        config: the source's config.json, byte for byte; made from `build` in the library's own format for
            `timm:` and `transformers:`; None where there is no such format.
        inputs: example inputs, derived from the config.
        notes: what the user should know about the weights.
    """

    name: str
    provenance: Provenance
    build: Build
    config: bytes | None
    inputs: InputSpec
    loader: Loader = field(repr=False)
    notes: list[str] = field(default_factory=list)

    def module(self, device: str = "cpu") -> nn.Module:
        """Return the network in eval mode; a new one at every call.

        Args:
            device: where to put it. `meta` gives the architecture only: no weights are downloaded
                or read and no memory is taken.

        Raises:
            SourceError: weights that are missing, damaged or do not fit the architecture.
            HubError: weights that the Hub did not deliver.
        """
        if str(device) == "meta":
            return self.loader.architecture().eval()
        loaded = self.loader.load()
        files = dict(sorted({**self.provenance.files, **loaded.files}.items()))
        self.provenance = replace(
            self.provenance, files=files, commit=loaded.commit or self.provenance.commit
        )
        self.notes = list(loaded.notes)
        if loaded.dtype is not None:
            self.inputs = self.inputs.with_float_dtype(loaded.dtype)
            if "dtype" in self.build["arguments"]:
                self.build["arguments"]["dtype"] = loaded.dtype
        module = loaded.module.eval()
        return module if str(device) == "cpu" else module.to(device)
