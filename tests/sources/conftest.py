"""What tests of sources share: tiny checkpoints, written once, and a Hub on loopback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # for hub_server, which other tests use too

import hub_server

TINY_VIDEOMAE = {
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_labels": 5,
}


@pytest.fixture(scope="session")
def videomae(tmp_path_factory):
    """A directory with a tiny video classifier, as transformers writes it."""
    import torch
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = VideoMAEForVideoClassification(VideoMAEConfig(**TINY_VIDEOMAE))
    directory = tmp_path_factory.mktemp("videomae") / "videomae-small"
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A running Hub that the client of this process uses, with an empty cache."""
    with hub_server.running() as server:
        hub_server.point_client_at(server, tmp_path / "hf", monkeypatch)
        yield server


@pytest.fixture
def offline(monkeypatch):
    """A function that switches the client of this process to offline mode, as HF_HUB_OFFLINE=1 does."""
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def modules_cache(monkeypatch, tmp_path):
    """Where transformers copies a source's own code, away from the user's."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(scope="session")
def sharded(tmp_path_factory):
    """A directory with a tiny text network in several shards with an index."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=2, n_embd=32, n_head=2, vocab_size=100, n_positions=40, bos_token_id=1, eos_token_id=2
    )
    directory = tmp_path_factory.mktemp("sharded") / "gpt"
    GPT2LMHeadModel(config).save_pretrained(directory, max_shard_size="40KB")
    return directory


_REMOTE_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel


class TinyConfig(PretrainedConfig):
    model_type = "tiny-own-code"

    def __init__(self, width=4, **kwargs):
        self.width = width
        super().__init__(**kwargs)


class TinyModel(PreTrainedModel):
    config_class = TinyConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config):
        super().__init__(config)
        self.conv = torch.nn.Conv2d(3, config.width, 1)
        self.post_init()

    def forward(self, pixel_values):
        return self.conv(pixel_values)
"""


@pytest.fixture(scope="session")
def remote_code(tmp_path_factory):
    """A directory with a network whose class is Python code beside its config."""
    import json

    import torch
    from safetensors.torch import save_file

    directory = tmp_path_factory.mktemp("remote") / "own-code"
    directory.mkdir()
    (directory / "modeling_tiny.py").write_text(_REMOTE_CODE)
    config = {
        "model_type": "tiny-own-code",
        "architectures": ["TinyModel"],
        "auto_map": {"AutoConfig": "modeling_tiny.TinyConfig", "AutoModel": "modeling_tiny.TinyModel"},
        "width": 4,
    }
    (directory / "config.json").write_text(json.dumps(config))
    conv = torch.nn.Conv2d(3, 4, 1)
    tensors = {f"conv.{name}": tensor for name, tensor in conv.state_dict().items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
