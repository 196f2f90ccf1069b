"""`revsurgeon verify`: exit codes, the forms of the report, and what its options do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import revsurgeon as rs
from revsurgeon.checks import CHECKS, report_schema
from tests.cli.conftest import Run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rs.convert("demo", output=tmp_path_factory.mktemp("converted") / "demo-dr2")


@pytest.fixture
def artifact(converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(converted, tmp_path / "demo-dr2"))


def damage(artifact: Path) -> None:
    file = artifact / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_sound_artifact_passes_whole_and_its_json_is_of_the_published_schema(
    revsurgeon: Run, artifact: Path
) -> None:
    result = revsurgeon("verify", "demo-dr2", "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    published = json.loads((ROOT / "docs" / "verify.schema.json").read_text())
    assert published == report_schema()
    assert problems(document, published, published) == []
    assert {check["name"]: check["verdict"] for check in document["checks"]} == dict.fromkeys(
        CHECKS, "passed"
    )
    assert document["passed"] is True
    assert document["arithmetic"] == "exact"


def test_the_schema_refuses_what_is_not_a_report() -> None:
    schema = report_schema()
    sound = {
        "subject": "x",
        "seconds": 1.0,
        "passed": False,
        "checks": [{"name": "integrity", "verdict": "failed", "seconds": 0.1}],
    }
    assert problems(sound, schema, schema) == []
    for broken in (
        {**sound, "seconds": "long"},
        {**sound, "checks": [{"name": "integrity", "verdict": "perhaps", "seconds": 0.1}]},
        {**sound, "surprise": 1},
        {key: value for key, value in sound.items() if key != "passed"},
    ):
        assert problems(broken, schema, schema)


def problems(value: object, schema: dict, root: dict, at: str = "$") -> list[str]:
    """What of the JSON Schema (the part of it that pydantic writes) a value does not keep to."""
    if "$ref" in schema:
        return problems(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, at)
    if "anyOf" in schema:
        found = [problems(value, option, root, at) for option in schema["anyOf"]]
        return [] if any(not p for p in found) else [f"{at}: none of the alternatives"]
    if "const" in schema or "enum" in schema:
        allowed = schema.get("enum", [schema.get("const")])
        return [] if value in allowed else [f"{at}: {value!r} is not in {allowed}"]
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    kind = schema.get("type")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if (kind == "number" and not number) or (kind in kinds and not isinstance(value, kinds[kind])):
        return [f"{at}: {value!r} is no {kind}"]
    if isinstance(value, list):
        return [
            p for i, item in enumerate(value) for p in problems(item, schema["items"], root, f"{at}[{i}]")
        ]
    if not isinstance(value, dict):
        return []
    properties, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    found = [f"{at}: {name!r} is missing" for name in schema.get("required", []) if name not in value]
    for name, item in value.items():
        if name in properties:
            found += problems(item, properties[name], root, f"{at}.{name}")
        elif rest is False:
            found.append(f"{at}: {name!r} is too much")
        elif isinstance(rest, dict):
            found += problems(item, rest, root, f"{at}.{name}")
    return found


def test_a_failed_check_is_exit_code_3_and_the_table_says_which_and_where(
    revsurgeon: Run, artifact: Path
) -> None:
    damage(artifact)
    result = revsurgeon("verify", "demo-dr2", "--only", "integrity")
    assert result.code == 3
    assert "failed" in result.out
    assert "tensors whose bytes are not those that were recorded" in result.out
    assert "Traceback" not in result.err
    quiet = revsurgeon("verify", "demo-dr2", "--only", "integrity", "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (3, "failed\n", "")
    document = json.loads(revsurgeon("verify", "demo-dr2", "--only", "integrity", "--json").out)
    assert document["passed"] is False


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nowhere",), "no such artifact"),
        (("demo-dr2", "--only", "everything"), "the checks are integrity"),
        (("demo-dr2", "--device", "abacus"), "abacus"),
        (("demo-dr2", "--seeds", "0"), "seeds"),
        (("demo-dr2", "--rtol", "-1"), "rtol"),
        (("demo-dr2", "--input", "x"), "which input"),
        (("someone/something", "--stamp"), "on this machine"),
        (("README.md",), "an artifact is a directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_usage_is_exit_code_2(
    revsurgeon: Run, artifact: Path, arguments: tuple[str, ...], told: str
) -> None:
    (artifact.parent / "README.md").write_text("hello")
    result = revsurgeon("verify", *arguments)
    assert result.code == 2
    assert told in result.err.lower()


def test_weights_without_a_manifest_are_no_artifact(revsurgeon: Run, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    result = revsurgeon("verify", str(tmp_path))
    assert result.code == 2
    assert "revsurgeon convert" in result.err


def test_offline_leaves_provenance_out_and_nothing_checked_is_not_passed(
    revsurgeon: Run, artifact: Path
) -> None:
    result = revsurgeon("verify", "demo-dr2", "--offline", "--only", "provenance", "--json")
    document = json.loads(result.out)
    (check,) = document["checks"]
    assert check["verdict"] == "skipped"
    assert "--offline" in check["reason"]
    assert result.code == 3  # a pipeline that checks nothing must not be green
    both = ("--only", "provenance", "--only", "integrity")
    assert revsurgeon("verify", "demo-dr2", "--offline", *both).code == 0


def test_junit_and_markdown_hold_every_check(revsurgeon: Run, artifact: Path) -> None:
    damage(artifact)
    only = [word for name in ("integrity", "provenance", "equations") for word in ("--only", name)]
    files = ("--junit", "verify.xml", "--markdown", "verify.md")
    assert revsurgeon("verify", "demo-dr2", "--offline", *only, *files).code == 3
    suite = ElementTree.parse("verify.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    failure = suite.find("testcase[@name='integrity']/failure")
    assert failure is not None
    assert "bytes" in str(failure.get("message"))
    text = Path("verify.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0].lstrip("| ") for row in rows[2:]] == ["integrity", "provenance", "equations"]
    assert "**failed**" in text


def test_a_weight_file_alone_is_enough(revsurgeon: Run, artifact: Path) -> None:
    file = artifact.parent / "alone.safetensors"
    shutil.copy(artifact / "model.safetensors", file)
    only = ("--only", "integrity", "--only", "provenance", "--only", "equivalence")
    assert revsurgeon("verify", str(file), *only).code == 0


@pytest.mark.slow
def test_a_larger_tolerance_lets_float_pass(revsurgeon: Run, tmp_path: Path, artifact: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = "name: loose\nmode: dr2\narithmetic: float\nstart: {alpha: 0.5, beta: 0.5}\n"
    recipe.write_text(text)
    assert revsurgeon("convert", "demo", "--recipe", str(recipe), "--output", "strict").code == 0
    only = ("--only", "gradients")
    strict = json.loads(revsurgeon("verify", "strict", *only, "--rtol", "1e-9", "--json").out)
    assert strict["passed"] is False
    assert revsurgeon("verify", "strict", *only).code == 0
    recipe.write_text(text + "checks: {rtol: 1.0e-9, seeds: 1, skip: [provenance, reversibility]}\n")
    assert revsurgeon("convert", "demo", "--recipe", str(recipe), "--output", "in-recipe").code == 0
    document = json.loads(revsurgeon("verify", "in-recipe", "--json").out)
    verdicts = {check["name"]: check["verdict"] for check in document["checks"]}
    assert verdicts["gradients"] == "failed"
    assert verdicts["provenance"] == verdicts["reversibility"] == "skipped"
    assert revsurgeon("verify", "in-recipe", *only, "--rtol", "0.1").code == 0  # the option comes first


def test_weights_can_be_cast_and_inputs_replaced(revsurgeon: Run, artifact: Path) -> None:
    result = revsurgeon(
        *("verify", "demo-dr2", "--dtype", "bfloat16", "--input", "x=3x1x8x8", "--seeds", "1"),
        *("--only", "equivalence", "--only", "reversibility", "--json"),
    )
    assert result.code == 0, result.out
    assert json.loads(result.out)["dtype"] == "bfloat16"


def test_convert_refuses_to_write_what_does_not_pass(
    revsurgeon: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from revsurgeon.reversible.arithmetic import ExactArithmetic, Streams

    monkeypatch.chdir(tmp_path)

    def start(self: ExactArithmetic, x: torch.Tensor) -> Streams:
        return Streams(self._on_grid(x), self._on_grid(x))

    monkeypatch.setattr(ExactArithmetic, "start", start)
    options = ("convert", "demo", "--arithmetic", "exact", "--output", "out")
    result = revsurgeon(*options)
    assert result.code == 3
    assert "blocks: its start: y_0" in result.err
    assert list(tmp_path.iterdir()) == []
    assert revsurgeon(*options, "--no-verify").code == 0
    manifest = json.loads(revsurgeon(*options, "--no-verify", "--force", "--json").out)["manifest"]
    assert manifest["checks"]["verify"] == "not verified"
    assert revsurgeon("verify", "out", "--only", "equations", "--quiet").code == 3
