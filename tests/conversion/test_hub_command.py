"""The user's own command against a Hub: what is written, and what is not when the Hub does not deliver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import revsurgeon as rs
from tests import hub_server
from tests.artifact.processes import contents
from tests.cli.conftest import PACKAGE
from tests.conversion.conftest import Run
from tests.hub_server import HubServer
from tests.sources.conftest import TINY_VIDEOMAE

NAME = "facebook/videomae-small"
COMMAND = ("convert", NAME, "--mode", "dr2", "--json")


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    from transformers import VideoMAEForVideoClassification

    return VideoMAEForVideoClassification.from_pretrained(directory).state_dict()


def assert_same(path: str, expected: dict[str, torch.Tensor]) -> None:
    state = rs.load(path).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def test_the_command_writes_the_repositorys_network(
    revsurgeon: Run, hub: HubServer, videomae: Path, tmp_path: Path
) -> None:
    commit = hub.add(NAME, videomae)
    result = revsurgeon(*COMMAND)
    document = json.loads(result.out)
    assert (result.code, document["output"]) == (0, "videomae-small-dr2")
    manifest = document["manifest"]
    assert (manifest["source"]["repo_id"], manifest["source"]["commit"]) == (NAME, commit)
    assert sorted(manifest["source"]["files"]) == ["config.json", "model.safetensors"]
    assert (tmp_path / "videomae-small-dr2" / "config.json").read_bytes() == (
        videomae / "config.json"
    ).read_bytes()
    assert_same("videomae-small-dr2", weights_of(videomae))
    model = rs.load("videomae-small-dr2")
    assert type(model).__name__ == "VideoMAEForVideoClassification"
    (chain,) = rs.chains(model)
    assert sum(chain.segments) == 2 * TINY_VIDEOMAE["num_hidden_layers"]
    assert hub.downloads("model.safetensors") == 1


def test_the_result_trains_reversibly(revsurgeon: Run, hub: HubServer, videomae: Path) -> None:
    hub.add(NAME, videomae)
    assert revsurgeon(*COMMAND, "--arithmetic", "exact").code == 0
    model = rs.load("videomae-small-dr2").train()
    clips = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for stored in (False, True):
        model.zero_grad()
        if stored:
            with rs.stored_activations(model):
                model(pixel_values=clips, labels=torch.tensor([0, 1])).loss.backward()
        else:
            model(pixel_values=clips, labels=torch.tensor([0, 1])).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients[1].items():
        assert torch.equal(gradients[0][name], gradient)


@pytest.mark.parametrize("form", ["in the name", "as an option"])
def test_a_revision_is_taken_and_recorded(
    revsurgeon: Run, hub: HubServer, videomae: Path, tmp_path: Path, form: str
) -> None:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    VideoMAEForVideoClassification(VideoMAEConfig(**TINY_VIDEOMAE)).save_pretrained(tmp_path / "newer")
    old = hub.add(NAME, videomae, revision="v1")
    hub.add(NAME, tmp_path / "newer")
    arguments = (f"{NAME}@v1",) if form == "in the name" else (NAME, "--revision", "v1")
    result = revsurgeon("convert", *arguments, "--json")
    document = json.loads(result.out)
    source = document["manifest"]["source"]
    assert (source["revision"], source["commit"]) == ("v1", old)
    assert document["output"] == "videomae-small-dr2"
    assert_same("videomae-small-dr2", weights_of(videomae))


def refused(revsurgeon: Run, *arguments: str) -> dict[str, str]:
    """Run a conversion that must end with the Hub's exit code and write nothing; its error."""
    before = {*os.listdir(), "hf"}  # the client's cache
    result = revsurgeon(*arguments, "--json")
    document = json.loads(result.out)
    assert result.code == document["exit_code"] == 5
    assert "Traceback" not in result.err
    assert {*os.listdir(), "hf"} == before
    error: dict[str, str] = document["error"]
    return error


def test_a_wrong_id_names_near_ones_and_writes_nothing(
    revsurgeon: Run, hub: HubServer, videomae: Path
) -> None:
    hub.add(NAME, videomae)
    error = refused(revsurgeon, "convert", "facebook/videomae-smal", "--mode", "dr2")
    assert NAME in error["where"]
    assert hub.downloads("model.safetensors") == 0


def test_an_unknown_revision_names_those_there_are(revsurgeon: Run, hub: HubServer, videomae: Path) -> None:
    hub.add(NAME, videomae, revision="v1")
    error = refused(revsurgeon, "convert", f"{NAME}@v2")
    assert "v1" in error["where"]


def test_a_gated_repository_says_where_to_ask_and_opens_with_a_token(
    revsurgeon: Run, hub: HubServer, videomae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, videomae, gated=True)
    error = refused(revsurgeon, "convert", NAME)
    assert f"{hub.endpoint}/{NAME}" in error["where"]
    assert "hf auth login" in error["hint"]
    monkeypatch.setenv("HF_TOKEN", hub_server.GOOD_TOKEN)
    assert revsurgeon(*COMMAND).code == 0
    token = hub_server.GOOD_TOKEN.encode()
    assert not any(token in data for data in contents(Path("videomae-small-dr2")).values())


@pytest.mark.parametrize("there", [False, True], ids=["nothing there", "an old artifact there"])
def test_a_hub_that_dies_in_mid_download_changes_nothing_and_the_next_run_succeeds(
    revsurgeon: Run,
    hub: HubServer,
    videomae: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_waiting: None,
    there: bool,
) -> None:
    output = tmp_path / "out"
    if there:
        rs.convert("demo", output=output)
    before = contents(output)
    hub.add(NAME, videomae)
    hub.die_after((videomae / "model.safetensors").stat().st_size // 2)
    error = refused(revsurgeon, "convert", NAME, "--output", "out", "--force")
    assert "the connection broke" in error["what"]
    assert contents(output) == before
    with hub_server.running() as revived:
        hub_server.point_client_at(revived, tmp_path / "hf", monkeypatch)
        revived.add(NAME, videomae)
        assert revsurgeon("convert", NAME, "--output", "out", "--force", "--json").code == 0
    assert_same("out", weights_of(videomae))


def test_offline_after_a_first_run_the_same_bytes_are_written_without_a_request(
    revsurgeon: Run, hub: HubServer, videomae: Path, tmp_path: Path, offline: Callable[[], None]
) -> None:
    hub.add(NAME, videomae)
    assert revsurgeon(*COMMAND).code == 0
    online = contents(tmp_path / "videomae-small-dr2")
    requests = list(hub.requests)
    offline()
    assert revsurgeon(*COMMAND, "--force").code == 0
    assert contents(tmp_path / "videomae-small-dr2") == online
    assert hub.requests == requests


def test_offline_without_a_first_run_says_what_to_do(
    revsurgeon: Run, hub: HubServer, videomae: Path, offline: Callable[[], None]
) -> None:
    hub.add(NAME, videomae)
    offline()
    error = refused(revsurgeon, "convert", NAME)
    assert "offline mode is on" in error["what"]


@pytest.mark.slow
def test_processes_of_their_own_need_nothing_but_the_clients_variables(
    videomae: Path, tmp_path: Path
) -> None:
    def run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return subprocess.run(
            [sys.executable, "-m", "revsurgeon.cli", *COMMAND, "--force"],
            env={**clean, "PYTHONPATH": str(PACKAGE.parent), **environment},
            capture_output=True,
            text=True,
            timeout=250,
        )

    with hub_server.running() as server:
        server.add(NAME, videomae)
        environment = hub_server.environment(server, tmp_path / "hf")
        first = run(environment)
    assert first.returncode == 0, first.stderr
    online = contents(tmp_path / "videomae-small-dr2")
    offline = run(environment | {"HF_HUB_OFFLINE": "1"})
    assert offline.returncode == 0, offline.stderr
    assert contents(tmp_path / "videomae-small-dr2") == online
