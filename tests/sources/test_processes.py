"""The Hub's client in processes of its own, set up by nothing but its environment variables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hub_server

from revsurgeon.sources import resolve

DEMO = Path(resolve.__code__.co_filename).parent / "demo"

# Finds the files of a repository without importing torch, which would take most of the time.
_DRIVER = """
import json, sys
from revsurgeon.errors import RevsurgeonError
from revsurgeon.sources.hub_source import open_hub
from revsurgeon.sources.reference import parse_reference

try:
    reference = parse_reference(sys.argv[1])
    options = {"allow_pickle": False, "trust_remote_code": False, "token": None, "cache_dir": None}
    checkpoint = open_hub(sys.argv[1], reference, **options)
    result = {"commit": checkpoint.commit, "files": checkpoint.find_weights().hashes()}
except RevsurgeonError as error:
    result = {"error": type(error).__name__, "what": error.what, "code": error.exit_code}
print(json.dumps(result))
"""


def run(spec, environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-c", _DRIVER, spec]
    result = subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(result.stdout)


def test_the_endpoint_the_token_and_offline_mode_are_the_clients_own_variables(tmp_path):
    with hub_server.running() as server:
        commit = server.add("someone/digits", DEMO, gated=True)
        environment = hub_server.environment(server, tmp_path)
        refused = run("someone/digits", environment)
        online = run("someone/digits", environment | {"HF_TOKEN": hub_server.GOOD_TOKEN})
    assert "is gated" in refused["what"]
    assert online["commit"] == commit
    assert online["files"] == resolve_files()
    offline = run("someone/digits", environment | {"HF_HUB_OFFLINE": "1"})
    assert offline == online
    absent = run("someone/else", environment | {"HF_HUB_OFFLINE": "1"})
    assert (absent["error"], absent["code"]) == ("HubError", 5)
    assert "offline mode is on" in absent["what"]


def resolve_files():
    import hashlib

    return {"model.safetensors": hashlib.sha256((DEMO / "model.safetensors").read_bytes()).hexdigest()}
