"""A converted network goes to the Hub in one commit, and `load` and `verify` take it from there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import revsurgeon as rs
from revsurgeon.cli.app import run
from tests import hub_server
from tests.hub_server import GOOD_TOKEN, STRANGER_TOKEN, HubServer


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, converted once."""
    return rs.convert("demo", output=tmp_path_factory.mktemp("artifacts") / "demo-dr2", arithmetic="exact")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A running Hub, where the one logged in may write."""
    with hub_server.running() as server:
        hub_server.point_client_at(server, tmp_path / "hf", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
        yield server


def files(server: HubServer, repo_id: str, revision: str = "main") -> dict[str, bytes]:
    repository = server.repositories[repo_id]
    return repository.commits[repository.refs[revision]]


def test_what_was_pushed_loads_by_its_id_and_is_the_same_network(hub: HubServer, demo: Path) -> None:
    address = rs.push(demo, "someone/demo-dr2")
    assert address.startswith(f"{hub.endpoint}/someone/demo-dr2/commit/")
    here, there = rs.load(demo), rs.load("someone/demo-dr2")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(here(x), there(x))
    assert rs.get_coefficients(here) == rs.get_coefficients(there)
    assert rs.verify("someone/demo-dr2", only=["integrity"]).passed


def test_the_files_are_the_artifacts_and_the_card_names_the_repository(hub: HubServer, demo: Path) -> None:
    before = {path.name: path.read_bytes() for path in demo.iterdir()}
    rs.push(demo, "someone/else")
    found = files(hub, "someone/else")
    assert set(found) == {*before, ".gitattributes"}
    assert {n for n in before if found[n] != before[n]} == {"README.md"}
    assert b"revsurgeon.load('someone/else')" in found["README.md"]
    assert {path.name: path.read_bytes() for path in demo.iterdir()} == before


def test_other_weights_make_room_and_other_files_stay(hub: HubServer, demo: Path) -> None:
    old = {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}"}
    hub.add("someone/demo", {**old, "notes.txt": b"n"})
    rs.push(demo, "someone/demo")
    found = files(hub, "someone/demo")
    assert "notes.txt" in found
    assert not set(found) & set(old)
    assert found["model.safetensors"] == (demo / "model.safetensors").read_bytes()


def test_a_branch_and_a_pull_request_leave_the_main_branch_alone(hub: HubServer, demo: Path) -> None:
    hub.add("someone/demo", {"notes.txt": b"n"})
    rs.push(demo, "someone/demo", revision="dr2")
    assert "manifest.yaml" in files(hub, "someone/demo", "dr2")
    assert "/discussions/" in rs.push(demo, "someone/demo", create_pr=True)
    assert files(hub, "someone/demo") == {"notes.txt": b"n"}
    assert rs.chains(rs.load("someone/demo@dr2"))


def test_a_new_repository_is_private_where_that_is_wanted(hub: HubServer, demo: Path) -> None:
    rs.push(demo, "someone/secret", private=True)
    assert hub.repositories["someone/secret"].private


@pytest.mark.parametrize("token", [None, STRANGER_TOKEN], ids=["nobody", "a stranger"])
def test_who_may_not_write_is_told_so_and_nothing_is_there(
    hub: HubServer, demo: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(rs.HubError, match="does not let you write") as error:
        rs.push(demo, "someone/demo", token=token or False)
    assert "hf auth login" in str(error.value.hint)
    assert hub.repositories == {}


def test_an_upload_that_breaks_off_commits_nothing(
    hub: HubServer, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # between its retries
    hub.die_after(1000)
    with pytest.raises(rs.HubError):
        rs.push(demo, "someone/demo")
    assert list(files(hub, "someone/demo")) == [".gitattributes"]


@pytest.mark.parametrize("damage", ["a flipped bit", "a weight file alone", "nothing"])
def test_what_is_no_whole_artifact_is_refused_before_the_hub_is_asked(
    hub: HubServer, demo: Path, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "demo-dr2"
    path.mkdir()
    if damage != "nothing":
        for file in demo.iterdir():
            (path / file.name).write_bytes(file.read_bytes())
    if damage == "a flipped bit":
        weights = bytearray((path / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (path / "model.safetensors").write_bytes(weights)
    if damage == "a weight file alone":
        path = path / "model.safetensors"
    with pytest.raises((rs.ArtifactError, rs.UsageError)):
        rs.push(path, "someone/demo")
    assert hub.repositories == {}


def test_a_path_is_never_taken_for_an_id(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(rs.ArtifactError):
        rs.load(Path("someone/demo"))
    assert hub.requests == []


def test_the_command_uploads_and_says_how_to_load_it(
    hub: HubServer, demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["push", str(demo), "someone/demo", "--private"]) == 0
    assert "revsurgeon.load(" in capsys.readouterr().out
    assert hub.repositories["someone/demo"].private
    assert run(["push", str(demo / "missing"), "someone/demo"]) == 2
    assert run(["push", str(demo), "no such/name"]) == 2


def test_a_conversion_can_go_to_the_hub_at_once(hub: HubServer, tmp_path: Path) -> None:
    assert run(["convert", "demo", "--output", str(tmp_path / "demo"), "--push-to-hub", "someone/demo"]) == 0
    assert "manifest.yaml" in files(hub, "someone/demo")
    assert (tmp_path / "demo" / "manifest.yaml").exists()
