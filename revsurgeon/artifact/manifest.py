"""The manifest: what was done to a network, from which source, and what the weights should be.

The same manifest is written twice: as JSON into the header of every weight file, so that one file is
enough, and as manifest.yaml, for people. Both read back equal to what was written, floats included.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from revsurgeon.artifact.plain_json import MAX_BYTES, parse_json, render_json
from revsurgeon.errors import ArtifactError
from revsurgeon.recipes import SMALLEST_BETA, Coefficients, Recipe
from revsurgeon.recipes.strict_yaml import YamlError, dump_yaml, parse_yaml

FORMAT_VERSION: Literal[1] = 1

_FROZEN = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

_MOST = 1_000_000  # of anything that is counted in a chain


def _as_json(value: object) -> object:
    """What JSON would make of it: tuples become lists, so that a manifest equals what is read back."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"it is not plain JSON data: {error}") from None


JsonObject = Annotated[dict[str, JsonValue], BeforeValidator(_as_json)]


class TensorRecord(BaseModel):
    """What one stored tensor is."""

    model_config = _FROZEN

    dtype: str = Field(description="As safetensors names it: F32, BF16, ...")
    shape: list[Annotated[int, Field(ge=0)]]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the tensor's bytes, row by row.")


class ChainRecord(BaseModel):
    """One chain that was rewired."""

    model_config = _FROZEN

    name: str
    blocks: list[str] = Field(min_length=1, description="Module paths in call order; one may come twice.")
    segments: list[Annotated[int, Field(ge=1, le=_MOST)]] = Field(
        description="How many segments each block has."
    )
    streams: list[str] = Field(description="The parameter of each block's forward that takes the stream.")
    outputs: list[Annotated[int, Field(ge=0, le=_MOST)]] = Field(
        description="The stream's place among each block's flattened outputs."
    )
    grid_bits: Annotated[int, Field(ge=0, le=48)] = Field(
        default=20, description="Grid points per unit in exact arithmetic, as a power of two."
    )
    anchors: Annotated[int, Field(ge=0, le=_MOST)] = Field(
        default=0, description="In float arithmetic, streams are stored every so many segments (0: never)."
    )
    chunks: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="Into how many pieces segments are cut whose pieces are independent."
    )
    merge: Literal["normalized", "last"] = Field(description="What becomes of the two streams at its end.")
    copy_output: bool = Field(description="Whether its output is copied, because someone writes into it.")

    @model_validator(mode="after")
    def _as_many(self) -> ChainRecord:
        for name in ("segments", "streams", "outputs"):
            if len(self.blocks) != len(getattr(self, name)):
                entries = len(getattr(self, name))
                raise ValueError(f"{len(self.blocks)} blocks but {entries} entries in {name}")
        return self


class Manifest(BaseModel):
    """Everything `revsurgeon.load` needs beside the weights, and everything a reader asks about them."""

    model_config = _FROZEN

    format_version: Literal[1] = FORMAT_VERSION
    revsurgeon: str = Field(description="The version that wrote it.")
    source: JsonObject = Field(description="Where the weights come from.")
    build: JsonObject = Field(description="How the bare architecture is constructed again.")
    config: str | None = Field(default=None, description="The text of the source's own config.json.")
    inputs: JsonObject = Field(description="Example inputs: shapes, dtypes and kinds.")
    recipe: Recipe
    chains: list[ChainRecord] = Field(min_length=1)
    coefficients: Coefficients = Field(description="The present ones; the recipe has the initial ones.")
    arithmetic: Literal["float", "exact"]
    schedule_state: JsonObject | None = None
    checks: JsonObject = Field(default={}, description="What was checked, by name.")
    files: list[str] = Field(default=[], description="The weight files, in order.")
    tensors: dict[str, TensorRecord] = {}

    @field_validator("coefficients")
    @classmethod
    def _can_be_set(cls, point: Coefficients) -> Coefficients:
        if 0 < point.beta < SMALLEST_BETA:
            raise ValueError(f"beta is {point.beta!r}, neither 0 nor at least 2**-16")
        return point

    def to_json(self) -> str:
        """One line of ASCII, the same for equal manifests."""
        return render_json(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        """The same data to read, with one line a tensor."""
        data = self.model_dump(mode="json")
        tensors = data.pop("tensors")
        lines = [
            f"  {_quoted(name)}: {{dtype: {_quoted(t['dtype'])}, shape: {t['shape']}, "
            f"sha256: {t['sha256']!r}}}\n"
            for name, t in tensors.items()
        ]
        return dump_yaml(data) + ("tensors:\n" + "".join(lines) if lines else "tensors: {}\n")

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """The manifest in a weight file's header.

        Raises:
            ArtifactError: it is not a manifest, or one that a newer version wrote.
        """
        return _validated(parse_json(text, where), where)

    @classmethod
    def from_yaml(cls, text: str, where: str) -> Manifest:
        """The manifest of a manifest.yaml.

        Raises:
            ArtifactError: it is not a manifest, or one that a newer version wrote.
        """
        try:
            document = parse_yaml(text, max_bytes=MAX_BYTES, max_depth=100, max_values=2_000_000)
        except YamlError as error:
            raise ArtifactError(
                f"The manifest cannot be read: {error.what}.", where=f"{where}:{error.line}"
            ) from None
        return _validated(document.data, where)


def _validated(data: object, where: str) -> Manifest:
    if not isinstance(data, dict):
        raise ArtifactError("The manifest is not a mapping.", where=where)
    version: Any = data.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        newer = isinstance(version, int) and version > FORMAT_VERSION
        raise ArtifactError(
            f"The artifact's format is {str(version)[:40]}; this revsurgeon reads {FORMAT_VERSION}.",
            where=where,
            hint="Upgrade: pip install --upgrade revsurgeon" if newer else "Convert the source again.",
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        lines = [f"{where} {'.'.join(map(str, p['loc']))[:200]}: {p['msg']}" for p in problems[:5]]
        if len(problems) > 5:
            lines.append(f"and {len(problems) - 5} more")
        raise ArtifactError(
            "The manifest is not valid.", where="\n".join(lines), hint="Convert the source again."
        ) from None


def _quoted(text: str) -> str:
    """A YAML scalar in double quotes. JSON's escapes are YAML's, but for astral and control characters."""
    if text.isascii() and text.isprintable():
        return json.dumps(text)
    return '"' + "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08x}" for c in text) + '"'
