"""Networks that timm, torchvision and transformers know by name."""

from __future__ import annotations

import io
import json
import urllib.error

import pytest
import torch

from revsurgeon.errors import HubError, SourceError
from revsurgeon.sources import build_architecture, resolve


def outputs(module, source, device="cpu"):
    inputs = source.inputs.example(device=device)
    with torch.no_grad():
        result = module(**inputs) if isinstance(inputs, dict) else module(*inputs)
    return result if isinstance(result, torch.Tensor) else next(iter(result.values()))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("timm:vit_tiny_patch16_224", (1, 3, 224, 224)),
        ("timm:vit_giant_patch14_dinov2", (1, 3, 518, 518)),
        ("timm:swin_tiny_patch4_window7_224", (1, 3, 224, 224)),
        ("timm:test_efficientnet", (1, 3, 160, 160)),
        ("torchvision:swin3d_t", (1, 3, 16, 224, 224)),
        ("torchvision:r3d_18", (1, 3, 16, 112, 112)),
        ("torchvision:mvit_v2_s", (1, 3, 16, 224, 224)),
        ("torchvision:vit_b_16", (1, 3, 224, 224)),
        ("torchvision:fcn_resnet50", (1, 3, 520, 520)),
        ("transformers:videomae", (1, 16, 3, 224, 224)),
        ("transformers:vivit", (1, 32, 3, 224, 224)),
        ("transformers:vjepa2", (1, 64, 3, 256, 256)),
        ("transformers:vit", (1, 3, 224, 224)),
        ("transformers:segformer", (1, 3, 224, 224)),
        ("transformers:audio-spectrogram-transformer", (1, 1024, 128)),
        ("transformers:whisper", (1, 80, 3000)),
        ("transformers:wav2vec2", (1, 16000)),
    ],
)
def test_inputs_derived_from_the_config_run_on_meta_without_weights_or_network(spec, shape):
    source = resolve(spec)
    module = source.module("meta")
    (entry,) = source.inputs.entries.values()
    assert entry.shape == shape
    assert all(tensor.is_meta for tensor in module.state_dict().values())
    assert outputs(module, source, "meta").is_meta


@pytest.mark.parametrize("spec", ["timm:test_vit", "timm:test_resnet", "torchvision:squeezenet1_1"])
def test_random_weights_are_the_same_at_every_run_and_leave_the_random_state_alone(spec):
    before = torch.get_rng_state()
    source = resolve(spec, random_weights=True)
    first, second = source.module().state_dict(), resolve(spec, random_weights=True).module().state_dict()
    assert same(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert source.provenance.weights == "random"
    assert source.provenance.files == {}


@pytest.mark.parametrize("spec", ["timm:test_vit", "torchvision:resnet18", "transformers:videomae"])
def test_a_task_head_has_the_classes_that_were_asked_for(spec):
    source = resolve(spec, random_weights=True, num_classes=7)
    assert outputs(source.module("meta"), source, "meta").shape == (2, 7)


def test_text_networks_get_token_ids_within_the_vocabulary_and_a_mask():
    source = resolve("transformers:bert")
    entries = source.inputs.entries
    assert list(entries) == ["input_ids", "attention_mask"]
    assert entries["input_ids"].high == 30522
    assert 0 in entries["input_ids"].avoid  # padding
    assert entries["attention_mask"].kind == "ones"


def test_encoder_decoder_networks_get_inputs_for_both():
    assert "decoder_input_ids" in resolve("transformers:t5").inputs.entries


def test_networks_of_two_modalities_get_both_unless_one_is_placed_among_tokens():
    assert {"input_ids", "pixel_values"} <= resolve("transformers:xclip").inputs.entries.keys()
    assert "pixel_values" not in resolve("transformers:llava").inputs.entries


def test_a_model_type_is_built_with_its_task_head():
    source = resolve("transformers:videomae")
    assert source.build["entry"] == "VideoMAEForVideoClassification"
    assert json.loads(source.config)["architectures"] == ["VideoMAEForVideoClassification"]


def test_a_model_type_has_no_weights_and_says_so(monkeypatch):
    from transformers import ViTConfig

    monkeypatch.setattr(ViTConfig, "num_hidden_layers", 1)
    source = resolve("transformers:vit")
    source.module()
    assert source.provenance.weights == "random"
    (note,) = source.notes
    assert "at random" in note


@pytest.mark.parametrize(
    ("spec", "near"),
    [
        ("timm:vit_tinny_patch16_224", "timm:vit_tiny_patch16_224"),
        ("timm:resnet50.a1_in1", "timm:resnet50.a1_in1k"),
        ("torchvision:swin3d_x", "torchvision:swin3d_t"),
        ("transformers:videomea", "transformers:videomae"),
    ],
)
def test_an_unknown_name_is_answered_with_close_ones(spec, near):
    with pytest.raises(SourceError) as raised:
        resolve(spec)
    assert near in raised.value.hint
    assert raised.value.exit_code == 2


def test_a_network_that_takes_no_plain_batch_is_refused():
    with pytest.raises(SourceError, match="something else than one batch"):
        resolve("torchvision:fasterrcnn_resnet50_fpn")


def test_a_timm_model_without_weights_asks_for_random_ones():
    with pytest.raises(SourceError, match="no pretrained weights") as raised:
        resolve("timm:coatnet_0_224").module()
    assert "--random-weights" in raised.value.hint


def test_a_number_of_classes_that_torchvisions_weights_do_not_have_is_refused():
    with pytest.raises(SourceError, match="have 1000 classes, not 7"):
        resolve("torchvision:resnet18", num_classes=7)


@pytest.fixture
def torch_hub(monkeypatch, tmp_path):
    """A download cache of torch.hub of its own; returns a function that puts weights where a URL points."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))

    def put(url, tensors):
        from revsurgeon.sources import torch_hub

        file = tmp_path / "checkpoints" / url.rpartition("/")[2]
        file.parent.mkdir(exist_ok=True)
        torch.save(tensors, file)
        return torch_hub

    return put


def test_torchvision_weights_come_through_torchvisions_own_cache(torch_hub):
    import torchvision

    network = torchvision.models.squeezenet1_1()
    torch_hub(torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url, network.state_dict())
    source = resolve("torchvision:squeezenet1_1")
    assert same(source.module().state_dict(), network.state_dict())
    (file,) = source.provenance.files
    assert file.startswith("squeezenet1_1-")
    assert source.build["arguments"] == {"weights": "IMAGENET1K_V1"}


def test_what_pretrained_weights_set_in_the_architecture_is_rebuilt_without_them(torch_hub):
    import torchvision

    network = torchvision.models.googlenet(aux_logits=False, transform_input=True, init_weights=False)
    whole = torchvision.models.googlenet(init_weights=False).state_dict()
    torch_hub(torchvision.models.GoogLeNet_Weights.DEFAULT.url, whole | network.state_dict())
    source = resolve("torchvision:googlenet")
    loaded, rebuilt = source.module(), build_architecture(source.build)
    assert loaded.transform_input
    assert rebuilt.transform_input
    assert rebuilt.state_dict().keys() == loaded.state_dict().keys()


def test_downloaded_weights_with_code_in_them_are_not_run(torch_hub, tmp_path):
    import torchvision

    class Attack:
        def __reduce__(self):
            import os

            return os.mkdir, (str(tmp_path / "attacked"),)

    torch_hub(torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url, {"x": Attack()})
    with pytest.raises(SourceError):
        resolve("torchvision:squeezenet1_1").module()
    assert not (tmp_path / "attacked").exists()


def test_weights_that_cannot_be_downloaded_say_how_to_do_without(torch_hub, monkeypatch):
    def fail(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "urlopen", fail)
    with pytest.raises(HubError, match="cannot be downloaded") as raised:
        resolve("torchvision:squeezenet1_1").module()
    assert "Name or service not known" in raised.value.where
    assert "--random-weights" in raised.value.hint
    assert raised.value.exit_code == 5


def test_downloaded_weights_of_another_hash_are_refused(torch_hub, monkeypatch):
    class Response(io.BytesIO):
        headers = {"Content-Length": "4"}  # noqa: RUF012  # as urllib's

        def info(self):
            return self

        def get_all(self, name):
            return ["4"]

    monkeypatch.setattr(torch.hub, "urlopen", lambda *_, **__: Response(b"evil"))
    with pytest.raises(HubError, match="their hash is wrong"):
        resolve("torchvision:squeezenet1_1").module()


def test_timm_names_without_the_hub_say_how_to_do_without(hub, offline):
    offline()
    with pytest.raises(HubError, match="offline mode is on"):
        resolve("timm:resnet10t.c3_in1k").module()


def test_the_config_made_for_a_timm_name_is_read_by_timm(tmp_path):
    import timm
    from safetensors.torch import save_file

    source = resolve("timm:test_vit", random_weights=True)
    module = source.module()
    (tmp_path / "config.json").write_bytes(source.config)
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    read = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert same(read.state_dict(), module.state_dict())


def test_versions_of_the_libraries_that_took_part_are_recorded():
    assert {"revsurgeon", "torch", "timm", "safetensors"} <= resolve(
        "timm:test_vit"
    ).provenance.libraries.keys()
    assert "torchvision" in resolve("torchvision:resnet18").provenance.libraries


def test_a_number_of_classes_below_one_is_refused():
    from revsurgeon.errors import UsageError

    with pytest.raises(UsageError, match="at least one class"):
        resolve("demo", num_classes=0)
