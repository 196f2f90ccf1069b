"""Repositories on the Hub, through the real client and a Hub on loopback."""

from __future__ import annotations

import json
import time
from pathlib import Path

import hub_server
import pytest
import torch

from revsurgeon.errors import HubError, SourceError
from revsurgeon.sources import build_architecture, resolve

DEMO = Path(resolve.__code__.co_filename).parent / "demo"
NAME = "facebook/videomae-small"


def logits(module, source):
    with torch.no_grad():
        return module(**source.inputs.example()).logits


def test_a_repository_becomes_the_network_that_its_config_names(hub, videomae):
    from transformers import VideoMAEForVideoClassification

    commit = hub.add(NAME, videomae)
    source = resolve(NAME)
    module = source.module()
    original = VideoMAEForVideoClassification.from_pretrained(videomae)
    assert type(module) is VideoMAEForVideoClassification
    assert torch.equal(logits(module, source), logits(original, source))
    assert source.name == "videomae-small"
    assert source.provenance.repo_id == NAME
    assert source.provenance.commit == commit
    assert sorted(source.provenance.files) == ["config.json", "model.safetensors"]
    assert source.config == (videomae / "config.json").read_bytes()


def test_inspection_downloads_the_config_and_no_weights(hub, videomae):
    hub.add(NAME, videomae)
    module = resolve(NAME).module("meta")
    assert all(parameter.is_meta for parameter in module.parameters())
    assert hub.downloads("config.json") == 1
    assert hub.downloads("model.safetensors") == 0


def test_random_weights_download_no_weights(hub, videomae):
    hub.add(NAME, videomae)
    source = resolve(NAME, random_weights=True)
    assert not any(parameter.is_meta for parameter in source.module().parameters())
    assert source.provenance.weights == "random"
    assert hub.downloads("model.safetensors") == 0


def test_a_timm_repository_is_told_apart_by_its_config(hub):
    hub.add("someone/digits", DEMO)
    source = resolve("hf:someone/digits")
    demo = resolve("demo")
    assert source.build["library"] == "timm"
    assert all(map(torch.equal, source.module().state_dict().values(), demo.module().state_dict().values()))


def test_a_timm_name_gets_its_pretrained_weights_from_the_hub(hub):
    import timm
    from safetensors.torch import save

    network = timm.create_model("resnet10t", pretrained=False)
    commit = hub.add("timm/resnet10t.c3_in1k", {"model.safetensors": save(network.state_dict())})
    source = resolve("timm:resnet10t.c3_in1k")
    loaded = source.module().state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in network.state_dict().items())
    assert source.provenance.repo_id == "timm/resnet10t.c3_in1k"
    assert source.provenance.commit == commit
    assert "model.safetensors" in source.provenance.files


@pytest.mark.parametrize("form", ["at", "option", "commit"])
def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, videomae, form):
    files = {path.name: path.read_bytes() for path in videomae.iterdir()}
    old = hub.add(NAME, files, revision="v1")
    hub.add(NAME, files | {"config.json": files["config.json"].replace(b"videomae", b"no-such")})
    if form == "at":
        source = resolve(f"{NAME}@v1")
    elif form == "option":
        source = resolve(NAME, revision="v1")
    else:
        source = resolve(f"{NAME}@{old}")
    assert source.provenance.commit == old
    assert source.provenance.revision == (old if form == "commit" else "v1")
    assert source.module() is not None


def test_an_unknown_revision_names_those_that_exist(hub, videomae):
    hub.add(NAME, videomae)
    hub.add(NAME, videomae, revision="v1")
    with pytest.raises(HubError, match="no revision 'v2'") as raised:
        resolve(f"{NAME}@v2")
    assert raised.value.where == "its branches and tags: main, v1"
    assert raised.value.exit_code == 5


@pytest.mark.parametrize(
    "wrong", ["facebook/videomae-smal", "facebok/videomae-small", "facebook/videomae-smalls"]
)
def test_an_unknown_id_names_near_ones(hub, videomae, wrong):
    hub.add(NAME, videomae)
    hub.add("google/vit-base", {})
    with pytest.raises(HubError, match="no repository") as raised:
        resolve(wrong)
    assert NAME in raised.value.where
    assert "vit-base" not in raised.value.where
    assert raised.value.exit_code == 5


def test_a_gated_repository_says_where_to_ask(hub, videomae):
    hub.add(NAME, videomae, gated=True)
    with pytest.raises(HubError, match="is gated: it needs an account") as raised:
        resolve(NAME)
    assert f"{hub.endpoint}/{NAME}" in raised.value.where
    assert "hf auth login" in raised.value.hint


def test_a_gated_repository_tells_an_account_without_access_apart(hub, videomae):
    hub.add(NAME, videomae, gated=True)
    with pytest.raises(HubError, match="your account has no access"):
        resolve(NAME, token=hub_server.STRANGER_TOKEN)


def test_the_clients_own_login_opens_a_gated_repository(hub, videomae, monkeypatch):
    hub.add(NAME, videomae, gated=True)
    monkeypatch.setenv("HF_TOKEN", hub_server.GOOD_TOKEN)
    assert resolve(NAME).module() is not None


def test_a_bad_token_is_named_as_the_reason(hub, videomae):
    hub.add(NAME, videomae)
    with pytest.raises(HubError, match="does not accept your token") as raised:
        resolve(NAME, token="hf_" + "x" * 34)
    assert "hf auth login" in raised.value.hint


def test_a_hub_with_a_failure_is_not_taken_for_a_missing_repository(hub, videomae, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.add(NAME, videomae)
    hub.status = 503
    with pytest.raises(HubError, match="has a failure of its own"):
        resolve(NAME)


def test_a_hub_that_dies_in_mid_download_leaves_nothing_usable_and_the_next_run_recovers(
    hub, videomae, monkeypatch, tmp_path
):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.add(NAME, videomae)
    hub.die_after((videomae / "model.safetensors").stat().st_size // 2)
    source = resolve(NAME)
    with pytest.raises(HubError, match=r"the connection broke, while fetching model\.safetensors") as raised:
        source.module()
    assert "run the command again" in raised.value.hint
    assert not list((tmp_path / "hf").rglob("snapshots/*/model.safetensors"))
    with hub_server.running() as revived:
        hub_server.point_client_at(revived, tmp_path / "hf", monkeypatch)
        revived.add(NAME, videomae)
        assert resolve(NAME).module() is not None


def test_a_dead_network_uses_the_cache_and_else_says_so(hub, videomae, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.add(NAME, videomae)
    first = resolve(NAME).module().state_dict()
    hub.die()
    again = resolve(NAME).module().state_dict()
    assert all(map(torch.equal, first.values(), again.values()))
    with pytest.raises(HubError, match="could not be reached"):
        resolve("facebook/another")


def test_offline_mode_works_after_a_first_run(hub, videomae, offline):
    hub.add(NAME, videomae)
    first = resolve(NAME).module().state_dict()
    offline()
    seen = len(hub.requests)
    source = resolve(NAME)
    assert all(map(torch.equal, first.values(), source.module().state_dict().values()))
    assert source.provenance.commit is not None
    assert len(hub.requests) == seen


def test_offline_mode_without_a_first_run_says_what_to_do(hub, videomae, offline):
    hub.add(NAME, videomae)
    offline()
    with pytest.raises(HubError, match=r"offline mode is on, and config\.json") as raised:
        resolve(NAME)
    assert "without HF_HUB_OFFLINE" in raised.value.hint


def test_offline_mode_after_inspection_alone_misses_the_weights(hub, videomae, offline):
    hub.add(NAME, videomae)
    resolve(NAME).module("meta")
    offline()
    with pytest.raises(HubError, match=r"offline mode is on, and model\.safetensors"):
        resolve(NAME).module()


def test_a_sharded_repository_is_fetched_whole_and_again_offline(hub, sharded, offline):
    hub.add("someone/sharded", sharded)
    source = resolve("someone/sharded")
    first = source.module().state_dict()
    shards = [name for name in source.provenance.files if name.endswith(".safetensors")]
    assert len(shards) > 2
    assert "model.safetensors.index.json" in source.provenance.files
    offline()
    again = resolve("someone/sharded").module().state_dict()
    assert all(map(torch.equal, first.values(), again.values()))


def test_a_missing_shard_is_an_error_that_names_it(hub, sharded):
    files = {path.name: path.read_bytes() for path in sharded.iterdir()}
    gone = next(name for name in sorted(files) if name.startswith("model-00002"))
    del files[gone]
    hub.add("someone/sharded", files)
    with pytest.raises(SourceError, match=gone):
        resolve("someone/sharded").module()


def test_an_index_that_names_files_elsewhere_downloads_nothing(hub, sharded):
    files = {path.name: path.read_bytes() for path in sharded.iterdir()}
    index = json.loads(files["model.safetensors.index.json"])
    index["weight_map"]["evil"] = "../../../../../tmp/evil.safetensors"
    hub.add("someone/evil", files | {"model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises(SourceError, match="outside its own directory"):
        resolve("someone/evil").module()
    assert not any(".safetensors" in request and "index" not in request for request in hub.requests)


def test_weights_that_are_only_a_pickle_need_leave(hub, videomae, tmp_path):
    from safetensors.torch import load_file

    original = resolve(str(videomae)).module().state_dict()
    torch.save(load_file(videomae / "model.safetensors"), tmp_path / "weights")
    files = {"config.json": (videomae / "config.json").read_bytes()}
    hub.add(NAME, files | {"pytorch_model.bin": (tmp_path / "weights").read_bytes()})
    with pytest.raises(SourceError, match="only as pickles") as raised:
        resolve(NAME).module()
    assert "--allow-pickle" in raised.value.hint
    loaded = resolve(NAME, allow_pickle=True).module().state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in original.items())


def test_a_repository_without_config_or_weights_says_so(hub):
    hub.add("someone/gguf", {"model.gguf": b"GGUF"})
    with pytest.raises(SourceError, match=r"has no config\.json"):
        resolve("someone/gguf")


def test_code_in_a_repository_runs_only_when_asked(hub, remote_code, modules_cache):
    hub.add("someone/own-code", remote_code)
    with pytest.raises(SourceError, match="ships its own Python code") as raised:
        resolve("someone/own-code")
    assert "--trust-remote-code" in raised.value.hint
    assert hub.downloads("modeling_tiny.py") == 0
    source = resolve("someone/own-code", trust_remote_code=True)
    module = source.module()
    assert type(module).__name__ == "TinyModel"
    with pytest.raises(SourceError, match="Python code that the source ships"):
        build_architecture(source.build, source.config)
    again = build_architecture(source.build, source.config, trust_remote_code=True)
    assert again.state_dict().keys() == module.state_dict().keys()
