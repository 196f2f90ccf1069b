"""Local directories and files: what is read, and what is refused as damaged, elsewhere or maybe code."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from revsurgeon.errors import SourceError
from revsurgeon.sources import resolve


@pytest.fixture
def copy(videomae, tmp_path):
    """A copy of the tiny video classifier, to be damaged."""
    return Path(shutil.copytree(videomae, tmp_path / "copy"))


@pytest.fixture
def sharded_copy(sharded, tmp_path):
    """A copy of the tiny sharded network, to be damaged."""
    return Path(shutil.copytree(sharded, tmp_path / "sharded"))


def edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_the_task_head_comes_along_and_outputs_are_those_of_the_library(videomae):
    from transformers import VideoMAEForVideoClassification

    source = resolve(str(videomae))
    module = source.module()
    original = VideoMAEForVideoClassification.from_pretrained(videomae)
    assert type(module) is VideoMAEForVideoClassification
    assert not module.training
    inputs = source.inputs.example(batch_size=3)
    assert inputs["pixel_values"].shape == (3, 4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(module(**inputs).logits, original(**inputs).logits)
    assert source.name == "videomae-small"
    assert source.provenance.kind == "local"


def test_a_weights_file_with_its_config_beside_it_is_the_directory(videomae):
    source = resolve(str(videomae / "model.safetensors"))
    assert source.name == "videomae-small"
    expected = resolve(str(videomae)).module().state_dict()
    assert all(map(torch.equal, source.module().state_dict().values(), expected.values()))


def test_a_weights_file_of_another_name_gives_its_name(copy):
    (copy / "model.safetensors").rename(copy / "best.safetensors")
    assert resolve(str(copy / "best.safetensors")).name == "best"
    assert resolve(str(copy)).module() is not None


def test_a_bare_weights_file_asks_for_its_config(copy):
    (copy / "config.json").unlink()
    with pytest.raises(SourceError, match=r"no config\.json beside the weights") as raised:
        resolve(str(copy / "model.safetensors"))
    assert str(copy / "config.json") in raised.value.where


def test_a_file_that_is_no_weights_file_is_refused(copy):
    (copy / "notes.txt").write_text("hello")
    with pytest.raises(SourceError, match="no weights file"):
        resolve(str(copy / "notes.txt"))


def test_a_config_alone_is_enough_for_random_weights_that_repeat(copy):
    (copy / "model.safetensors").unlink()
    first, second = (resolve(str(copy), random_weights=True).module().state_dict() for _ in range(2))
    assert all(map(torch.equal, first.values(), second.values()))
    with pytest.raises(SourceError, match="holds no weights") as raised:
        resolve(str(copy)).module()
    assert "--random-weights" in raised.value.hint


def test_the_demo_is_a_trained_network_shipped_in_the_package():
    source = resolve("demo")
    assert source.provenance.kind == "demo"
    with torch.no_grad():
        assert source.module()(*source.inputs.example()).shape == (2, 10)


def test_shards_are_read_through_their_index_and_tied_weights_stay_tied(sharded):
    source = resolve(str(sharded))
    module = source.module()
    assert module.lm_head.weight is module.transformer.wte.weight
    assert len(source.provenance.files) > 4
    by_index = resolve(str(sharded / "model.safetensors.index.json")).module()
    assert all(map(torch.equal, module.state_dict().values(), by_index.state_dict().values()))


def test_a_sharded_timm_network_is_read_too(tmp_path):
    demo = resolve("demo")
    tensors = demo.module().state_dict()
    names = sorted(tensors)
    halves = {"model-1.safetensors": names[:40], "model-2.safetensors": names[40:]}
    for file, part in halves.items():
        save_file({name: tensors[name].contiguous() for name in part}, tmp_path / file)
    weight_map = {name: file for file, part in halves.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_bytes(demo.config)
    module = resolve(str(tmp_path)).module()
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in tensors.items())
    assert "state_dict" not in module.pretrained_cfg


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_checkpoints_dtype_is_kept_and_inputs_follow(copy, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(copy / "model.safetensors").items()}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    source = resolve(str(copy))
    module = source.module()
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    assert source.inputs.example()["pixel_values"].dtype is dtype


def test_a_timm_checkpoint_keeps_its_dtype_too(tmp_path):
    demo = resolve("demo")
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in demo.module().state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(demo.config)
    source = resolve(str(tmp_path))
    assert {parameter.dtype for parameter in source.module().parameters()} == {torch.bfloat16}
    assert source.inputs.example()[0].dtype is torch.bfloat16


def test_one_tensor_in_more_precision_than_the_rest_keeps_it(copy):
    tensors = {
        name: tensor.to(torch.bfloat16) for name, tensor in load_file(copy / "model.safetensors").items()
    }
    tensors["classifier.bias"] = torch.full((5,), 1 + 2**-20)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(resolve(str(copy)).module().classifier.bias, tensors["classifier.bias"])


def test_a_class_that_the_config_names_must_be_complete(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match="does not fit 'VideoMAEForVideoClassification'") as raised:
        resolve(str(copy)).module()
    assert raised.value.where == "missing: classifier.weight"


def test_a_base_checkpoint_gets_a_new_head_that_is_reported_and_repeats(copy):
    edit(copy / "config.json", lambda config: config.pop("architectures"))
    tensors = {
        name: t for name, t in load_file(copy / "model.safetensors").items() if "classifier" not in name
    }
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    source = resolve(str(copy))
    first, second = source.module(), resolve(str(copy)).module()
    assert source.notes == ["newly initialised, not pretrained: classifier.bias, classifier.weight"]
    assert torch.equal(first.classifier.weight, second.classifier.weight)


def test_part_of_the_body_missing_is_an_error_even_where_the_head_may_be_new(copy):
    edit(copy / "config.json", lambda config: config.pop("architectures"))
    tensors = load_file(copy / "model.safetensors")
    gone = next(name for name in tensors if "layer.1" in name and "dense.weight" in name)
    del tensors[gone]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match="does not fit"):
        resolve(str(copy)).module()


def test_another_number_of_classes_gets_a_new_head_and_a_config_that_says_so(videomae):
    source = resolve(str(videomae), num_classes=7)
    assert source.module().classifier.out_features == 7
    assert len(source.notes) == 1
    assert len(json.loads(source.config)["id2label"]) == 7


def test_another_number_of_classes_of_a_timm_network_gets_a_new_head():
    source = resolve("demo", num_classes=3)
    assert source.module().head.out_features == 3
    assert source.notes == ["newly initialised, not pretrained: head.weight, head.bias"]
    assert json.loads(source.config)["num_classes"] == 3


def test_weights_of_another_shape_are_listed(copy):
    edit(copy / "config.json", lambda config: config.update(intermediate_size=96))
    with pytest.raises(SourceError, match="does not fit") as raised:
        resolve(str(copy)).module()
    assert "shape [64, 32] in the checkpoint, [96, 32] in the network" in raised.value.where


def test_weights_of_another_shape_are_listed_for_timm_too(tmp_path):
    demo = resolve("demo")
    tensors = demo.module().state_dict()
    tensors["head.bias"] = torch.zeros(11)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(demo.config)
    with pytest.raises(SourceError, match="does not fit the architecture") as raised:
        resolve(str(tmp_path)).module()
    assert "head.bias" in raised.value.where


@pytest.mark.parametrize("change", ["missing", "left over"])
def test_missing_and_left_over_weights_of_a_timm_network_are_listed(tmp_path, change):
    demo = resolve("demo")
    tensors = demo.module().state_dict()
    if change == "missing":
        del tensors["head.weight"]
    else:
        tensors["head.extra"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(demo.config)
    with pytest.raises(SourceError, match="does not fit the architecture") as raised:
        resolve(str(tmp_path)).module()
    assert "head." in raised.value.where


def test_weights_for_another_task_beside_a_complete_class_are_noted(tmp_path):
    from transformers import BertConfig, BertForPreTraining

    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertForPreTraining(config).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", lambda record: record.update(architectures=["BertForMaskedLM"]))
    source = resolve(str(tmp_path))
    assert type(source.module()).__name__ == "BertForMaskedLM"
    (note,) = source.notes
    assert "cls.seq_relationship.weight" in note


def test_not_a_number_in_the_weights_is_left_for_verification(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["classifier.bias"][0] = float("nan")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert resolve(str(copy)).module().classifier.bias.isnan().any()


def test_a_pickle_is_read_only_when_asked_and_then_as_tensors(copy):
    expected = resolve(str(copy)).module().state_dict()
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    for path in (copy, copy / "pytorch_model.bin"):
        with pytest.raises(SourceError, match="are a pickle") as raised:
            resolve(str(path)).module()
        assert "--allow-pickle" in raised.value.hint
        loaded = resolve(str(path), allow_pickle=True).module().state_dict()
        assert all(torch.equal(tensor, loaded[name]) for name, tensor in expected.items())


def test_a_training_checkpoint_is_unwrapped(copy):
    state = {f"module.{name}": tensor for name, tensor in load_file(copy / "model.safetensors").items()}
    torch.save({"epoch": 3, "state_dict": state}, copy / "last.pth")
    assert resolve(str(copy / "last.pth"), allow_pickle=True).module() is not None


def test_a_pickle_with_code_is_not_run(copy, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Attack()}, protocol=2))
    with pytest.raises(SourceError, match="holds more than tensors"):
        resolve(str(copy), allow_pickle=True).module()
    torch.save({"weight": Attack()}, copy / "pytorch_model.bin")
    with pytest.raises(SourceError, match="holds more than tensors"):
        resolve(str(copy), allow_pickle=True).module()
    assert not (tmp_path / "attacked").exists()


def test_safetensors_are_preferred_to_a_pickle_beside_them(copy):
    (copy / "pytorch_model.bin").write_bytes(b"never read")
    assert "pytorch_model.bin" not in read(copy).provenance.files


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "header"])
def test_a_damaged_weights_file_is_named(copy, damage):
    file = copy / "model.safetensors"
    content = file.read_bytes()
    damaged = {
        "cut": content[:-10],
        "empty": b"",
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "header": b"\xff" * 8 + content[8:],
    }
    file.write_bytes(damaged[damage])
    with pytest.raises(SourceError, match=r"damaged or no safetensors") as raised:
        resolve(str(copy)).module()
    assert str(file) in raised.value.where


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd.safetensors", "../outside.safetensors", "a/../../outside.safetensors", "C:\\x.safetensors"],
)
def test_an_index_that_leads_outside_its_directory_is_refused(sharded_copy, name):
    save_file({"evil": torch.zeros(1)}, sharded_copy.parent / "outside.safetensors")
    index = sharded_copy / "model.safetensors.index.json"
    edit(index, lambda record: record["weight_map"].update(evil=name))
    with pytest.raises(SourceError, match="outside its own directory"):
        resolve(str(sharded_copy)).module()


def test_a_missing_shard_is_named(sharded_copy):
    gone = sorted(sharded_copy.glob("model-0*"))[1]
    gone.unlink()
    with pytest.raises(SourceError, match=gone.name):
        resolve(str(sharded_copy)).module()


def test_a_tensor_in_two_shards_is_refused(sharded_copy):
    first, second, *_ = sorted(sharded_copy.glob("model-0*"))
    save_file(load_file(first) | load_file(second), second, metadata={"format": "pt"})
    with pytest.raises(SourceError, match="in more than one file"):
        resolve(str(sharded_copy)).module()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[" * 100_000]
)
def test_an_index_that_is_none_is_refused(sharded_copy, content):
    (sharded_copy / "model.safetensors.index.json").write_text(content)
    with pytest.raises(SourceError, match="index of the weights"):
        resolve(str(sharded_copy)).module()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_to_outside_is_refused(copy, tmp_path, name):
    (copy / name).rename(tmp_path / name)
    (copy / name).symlink_to(tmp_path / name)
    with pytest.raises(SourceError, match="link to outside"):
        resolve(str(copy)).module()


def test_a_link_inside_the_directory_is_fine(copy):
    (copy / "model.safetensors").rename(copy / "real.safetensors")
    (copy / "model.safetensors").symlink_to("real.safetensors")
    assert read(copy).provenance.files.keys() == {"config.json", "model.safetensors"}


def test_a_snapshot_in_the_hubs_cache_is_a_local_directory_too(hub, videomae, tmp_path):
    commit = hub.add("org/name", videomae)
    resolve("org/name").module()
    snapshot = tmp_path / "hf" / "hub" / "models--org--name" / "snapshots" / commit
    assert (snapshot / "model.safetensors").is_symlink()
    assert read(snapshot).provenance.kind == "local"


def test_several_weights_files_ask_for_a_choice(copy):
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").rename(copy / "a.safetensors")
    (copy / "b.safetensors").write_bytes(content)
    with pytest.raises(SourceError, match="several weights files") as raised:
        resolve(str(copy)).module()
    assert "a.safetensors" in raised.value.where
    assert resolve(str(copy / "b.safetensors")).module() is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "not valid JSON"),
        ("{}", "no `model_type`"),
        ('{"model_type": "no-such-type"}', "no architecture 'no-such-type'"),
        (
            '{"model_type": "videomae", "architectures": ["VideoMAEForDreaming"]}',
            "no class 'VideoMAEForDreaming'",
        ),
        ('{"model_type": "videomae", "architectures": [5]}', "does not name a class"),
        ('{"model_type": "videomae", "hidden_size": "wide"}', "not a config that transformers accepts"),
        ('{"architecture": "no_such_vit"}', "has no model 'no_such_vit'"),
        ('{"architecture": "vit_tiny_patch16_224", "pretrained_cfg": 5}', "not a config that timm can read"),
        ('{"architecture": 5}', "has no model"),
    ],
)
def test_a_config_that_says_nothing_usable_says_why(copy, content, message):
    (copy / "config.json").write_text(content)
    with pytest.raises(SourceError, match=message):
        resolve(str(copy))


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 30, "num_attention_heads": 4},
        {"model_type": "esm", "architectures": ["EsmModel"]},
        {"architecture": "vit_tiny_patch16_224", "model_args": {"no_such_argument": 1}, "pretrained_cfg": {}},
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_config_that_makes_no_network_says_why(copy, config, device):
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match="cannot be built from its config"):
        resolve(str(copy), random_weights=True).module(device)


def test_an_early_config_without_a_model_type_is_told_by_its_class(copy):
    expected = resolve(str(copy)).module().state_dict()
    edit(copy / "config.json", lambda config: config.pop("model_type"))
    loaded = resolve(str(copy)).module().state_dict()
    assert all(map(torch.equal, loaded.values(), expected.values()))


def test_a_config_of_a_misspelt_class_is_answered_with_close_ones(copy):
    edit(copy / "config.json", lambda config: config.update(architectures=["VideoMAEForVideoClasification"]))
    with pytest.raises(SourceError) as raised:
        resolve(str(copy))
    assert "VideoMAEForVideoClassification" in raised.value.hint


def test_own_code_beside_the_config_runs_only_when_asked(remote_code, modules_cache):
    with pytest.raises(SourceError, match="ships its own Python code"):
        resolve(str(remote_code))
    source = resolve(str(remote_code), trust_remote_code=True)
    with torch.no_grad():
        assert source.module()(**source.inputs.example()).shape == (2, 4, 224, 224)


def test_own_code_that_transformers_does_not_need_is_not_run(copy):
    edit(copy / "config.json", lambda config: config.update(auto_map={"AutoModel": "evil.VideoMAEModel"}))
    (copy / "evil.py").write_text("raise SystemExit('run')")
    assert read(copy).build["entry"] == "VideoMAEForVideoClassification"


def read(path):
    source = resolve(str(path))
    source.module()
    return source
