"""A config.json that asks for code, other files, or more than there is; and sources that are no names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import revsurgeon as rs
from revsurgeon.sources import resolve
from tests.attacks.sealed import assert_refused, command
from tests.attacks.test_manifests import VIT

DEMO = Path(rs.__file__).parent / "sources" / "demo"


def timm(**changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((DEMO / "config.json").read_text())
    config["model_args"] |= changes.pop("model_args", {})
    return config | changes


def bert(**changes: Any) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    } | changes


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"x": [value]}
    return value


CONFIGS: dict[str, dict[str, Any]] = {
    "code of the source": bert(
        architectures=["Evil"], auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.C"}
    ),
    "code of another repository": bert(
        architectures=["Evil"], auto_map={"AutoModel": "someone/evil--evil.Evil"}
    ),
    "an unknown type with code": bert(
        model_type="evil", architectures=None, auto_map={"AutoConfig": "evil.C"}
    ),
    "code in a map that is a list": bert(architectures=["Evil"], auto_map=[["AutoModel", "evil.Evil"]]),
    "a class that is no network": bert(architectures=["os"]),
    "a class of Python": bert(architectures=["__builtins__"]),
    "classes that are text": bert(architectures="BertModel; import os"),
    "kernels": bert(attn_implementation="someone/evil"),
    "kernels by the inner name": bert(_attn_implementation={"": "someone/evil@main:evil"}),
    "a pickle of timm's": timm(model_args={"checkpoint_path": "pytorch_model.bin"}),
    "an architecture of the Hub": timm(architecture="hf-hub:someone/evil"),
    "an architecture that is a directory": timm(architecture="local-dir:."),
    "an architecture that is a list": timm(architecture=["a"]),
    "timm's Hub through transformers": {
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperModel"],
        "architecture": "hf-hub:someone/evil",
        "num_classes": 2,
    },
    "timm's pickle through transformers": {
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperModel"],
        "architecture": VIT,
        "num_classes": 2,
        "model_args": {"checkpoint_path": "pytorch_model.bin"},
    },
    "another backbone": {
        "model_type": "timm_backbone",
        "architectures": ["TimmBackbone"],
        "backbone": "hf-hub:someone/evil",
    },
    "a width of 2^40": bert(hidden_size=2**40),
    "a vocabulary of 2^60": bert(vocab_size=2**60),
    "10^9 layers": bert(num_hidden_layers=10**9),
    "10^9 layers of timm's": timm(model_args={"depth": 10**9}),
    "depths of 10^9": timm(model_args={"depths": [2, 10**9]}),
    "a width below 0": bert(hidden_size=-8),
    "no heads": bert(num_attention_heads=0),
    "a patch of 0": timm(model_args={"patch_size": 0}),
    "an image of 2^40": timm(model_args={"img_size": 2**40}),
    "sizes that are text": bert(hidden_size="import os"),
    "numbers that overflow": bert(num_attention_heads=1e400),
    "depth of 50": bert(extra=nested(50), hidden_size="x"),
    "depth of 400": bert(extra=nested(400)),
    "a dtype that is a function": bert(dtype="load", hidden_act="os.system"),
    "a type that is a list": bert(model_type=["bert"]),
    "quantized by the unknown": bert(quantization_config={"quant_method": "evil"}, num_attention_heads=3),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_reaches_out_is_refused(
    tmp_path: Path, evil_pickle: bytes, proof: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Beside it lie code and a pickle that execute, and weights that fit nothing."""
    source = tmp_path / "source"
    source.mkdir()
    monkeypatch.chdir(source)
    (source / "config.json").write_text(json.dumps(CONFIGS[case]))
    (source / "evil.py").write_text(
        f"import os; os.mkdir({os.fspath(proof)!r})\nclass Evil: pass\nclass C: pass\n"
    )
    (source / "pytorch_model.bin").write_bytes(evil_pickle)
    shutil.copy(DEMO / "model.safetensors", source)
    assert_refused(
        lambda: rs.convert(str(source), output=tmp_path / "out"),
        lambda: resolve(str(source), random_weights=True).module("meta"),
    )
    assert not proof.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ["code of the source", "kernels", "a pickle of timm's", "10^9 layers"])
def test_the_command_line_refuses_it_too(tmp_path: Path, proof: Path, case: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[case]))
    (tmp_path / "evil.py").write_text(f"import os; os.mkdir({os.fspath(proof)!r})\n")
    commands = [command(name, str(tmp_path), "--random-weights") for name in ("convert", "memory", "errmap")]
    assert_refused(command("inspect", str(tmp_path)), *commands)
    assert not proof.exists()


NAMES = [
    "../../etc/passwd",
    "org/../../etc",
    "org/..",
    "org/name/../../x",
    "org/name;id",
    "org/$(id)",
    "org/`id`",
    "org/name|sh",
    "org/name\nx",
    "org/name\0x",
    "org/ name",
    "org/name@../../refs",
    "org/name@$(id)",
    "hf:../x",
    "hf:org/na--me",
    "timm:../x",
    "timm:hf-hub:someone/evil",
    "timm:$(id)",
    "torchvision:os.system",
    "transformers:../evil",
    "file:///etc/passwd",
    "http://127.0.0.1:9/x",
    "python:os;system:x",
    "python:../x:y",
    "\\\\server\\share",
    "C:\\windows\\system32",
    "-rf",
    "org/" + "x" * 100_000,
    "\u202eorg/name",
    "org/na\u0301me",
]


@pytest.mark.parametrize(
    "take",
    [
        lambda name: rs.convert(name, output="out", random_weights=True),
        rs.load,
        lambda name: command("convert", "--random-weights", "--", name)(),
        lambda name: command("verify", "--", name)(),
    ],
    ids=["convert", "load", "revsurgeon convert", "revsurgeon verify"],
)
def test_a_name_that_is_none_asks_nobody_and_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: Callable[[str], object]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(*(partial(take, name) for name in NAMES))


def test_what_cannot_be_a_repository_is_not_pushed_to(demo: Path) -> None:
    names = ("../x", "org/name/x", "org/$(id)", "org/..", "org/a b", "", "x\n/y")
    assert_refused(*(partial(rs.push, demo, name) for name in names))
