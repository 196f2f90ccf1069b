"""A Hub that lies, stalls or breaks off: an error in words, and nothing outside its cache."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import revsurgeon as rs
from revsurgeon.cli.app import run
from revsurgeon.sources import resolve
from tests import hub_server
from tests.attacks import hostile_hub
from tests.attacks.hostile_hub import LIES, LIES_IN_LISTS, HostileHub
from tests.hub_server import GOOD_TOKEN

HARMLESS = "no size"  # what arrives is whole


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HostileHub]:
    """The server, and a client that gives up early and does not wait between its attempts."""
    from huggingface_hub import constants

    with hostile_hub.running() as server:
        hub_server.point_client_at(server, tmp_path / "a" / "b" / "hf", monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
        pause = time.sleep
        monkeypatch.setattr(time, "sleep", lambda seconds: pause(min(seconds, 0.001)))
        yield server


def files(directory: Path) -> list[str]:
    """What is below a directory, apart from the Hub's cache."""
    found = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    return sorted(str(path) for path in found if "hf" not in path.parts)


@pytest.mark.parametrize(
    ("lie", "what"),
    [
        *((lie, "convert") for lie in LIES),
        *((lie, "load") for lie in (*LIES, *LIES_IN_LISTS)),  # a conversion does not ask for a list of files
    ],
)
def test_a_lie_ends_in_words_and_writes_nothing_elsewhere(
    hub: HostileHub, demo: Path, tmp_path: Path, lie: str, what: str
) -> None:
    hub.add("org/demo", demo)
    hub.lie = lie

    def attempt() -> object:
        if what == "load":
            return rs.load("org/demo")
        return rs.convert("org/demo", output=tmp_path / "out", verify=False, start=(0.9, 0.1))

    if lie == HARMLESS:
        assert attempt()
        return
    with pytest.raises(rs.RevsurgeonError) as error:
        attempt()
    assert error.value.exit_code in (2, 5)
    assert error.value.hint
    assert files(tmp_path) == []
    assert hub.asked < 200


def test_a_hub_that_fails_some_times_and_then_works_is_asked_again(hub: HostileHub, demo: Path) -> None:
    """How often is up to its client: several times for a file, once for a list of files."""
    hub.add("org/demo", demo)
    hub.failures = 3
    assert resolve("org/demo").provenance.commit
    hub.failures = 1
    assert rs.chains(rs.load("org/demo"))
    assert hub.failures == 0


def test_part_of_an_artifact_in_the_cache_is_not_taken_for_all_of_it(hub: HostileHub, demo: Path) -> None:
    """The Hub's client returns what the cache has where it gets no list of files."""
    hub.add("org/demo", demo)
    assert resolve("org/demo").provenance.commit  # fetches config.json alone
    hub.failures = 1000
    with pytest.raises(rs.HubError, match="failure of its own"):
        rs.load("org/demo")


def test_the_command_line_has_the_exit_code_of_the_hub(hub: HostileHub, demo: Path, tmp_path: Path) -> None:
    hub.add("org/demo", demo)
    hub.lie = "an etag that leads out of the cache"
    assert run(["convert", "org/demo", "--output", str(tmp_path / "out"), "--quiet"]) == 5
    assert run(["errmap", "org/demo", "--quiet"]) == 5
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "lie", ["a page for everything", "an answer that is no JSON", "an answer of another form"]
)
def test_an_upload_to_such_a_hub_is_an_error_in_words(
    hub: HostileHub, demo: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    hub.lie = lie
    with pytest.raises(rs.HubError):
        rs.push(demo, "org/demo")


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "manifest.yaml"])
def test_a_link_in_an_artifact_does_not_publish_what_it_leads_to(
    hub: HostileHub, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    copy, secret = tmp_path / "copy", tmp_path / "secret"
    copy.mkdir()
    for file in demo.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / name).rename(secret)
    (copy / name).symlink_to(secret)
    with pytest.raises(rs.ArtifactError, match="leads out of the artifact"):
        rs.push(copy, "org/demo")
    assert hub.repositories == {}


def test_only_the_artifacts_own_files_are_published(
    hub: HostileHub, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in demo.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "model-secret.safetensors").write_bytes(b"not of this artifact")
    card = (copy / "README.md").read_bytes()
    (copy / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(rs.ArtifactError, match="not UTF-8"):
        rs.push(copy, "org/demo")
    (copy / "README.md").write_bytes(card)
    rs.push(copy, "org/demo")
    (commit,) = hub.repositories["org/demo"].refs.values()
    assert set(hub.repositories["org/demo"].commits[commit]) == {
        *(file.name for file in demo.iterdir()),
        ".gitattributes",
    }
