"""A Hub on loopback that lies: about addresses, sizes, names and contents; or it stalls, or breaks off."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests import hub_server

PAGE = b"<!DOCTYPE html><html><body>Please log in to the wireless network.</body></html>"

LIES = (
    "a page for everything",
    "a page for the weights",
    "a redirect to itself",
    "a redirect to another scheme",
    "a redirect without an address",
    "a larger size",
    "a smaller size",
    "a negative size",
    "no size",
    "breaking off",
    "stalling",
    "stalling in mid-file",
    "an etag that leads out of the cache",
    "a commit that leads out of the cache",
    "no commit",
)

LIES_IN_LISTS = (
    "file names that lead out of the cache",
    "an answer that is no JSON",
    "an answer of another form",
)

STALL = 0.5  # seconds; then the connection is closed


class _Handler(hub_server._Handler):
    """Answers as the Hub does, but for the one lie that its server tells."""

    server: HostileHub

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.server.asked += 1
        lie, changed = self.server.lie, dict(headers)
        if self.server.failures > 0:
            self.server.failures -= 1
            return super()._send(503, b"", {})
        weights = self.path.startswith("/storage/") or self.path.endswith(".safetensors")
        file = weights or "/resolve/" in self.path
        api = self.path.startswith("/api/")
        if lie == "a page for everything" or (lie == "a page for the weights" and "/storage/" in self.path):
            return super()._send(200, PAGE, {"Content-Type": "text/html"})
        if lie == "a redirect to itself" and file:
            return super()._send(302, b"", {**changed, "Location": self.path})
        if lie == "a redirect to another scheme" and file:
            return super()._send(302, b"", {**changed, "Location": "file:///etc/passwd"})
        if lie == "a redirect without an address" and file:
            changed.pop("Location", None)
            return super()._send(302, b"", changed)
        if lie == "stalling" or (lie == "stalling in mid-file" and "/storage/" in self.path):
            return self._stall(content)
        if lie == "an etag that leads out of the cache" and file:
            changed |= {"ETag": f'"{self.server.outside}"', "X-Linked-ETag": f'"{self.server.outside}"'}
        if lie == "a commit that leads out of the cache" and "X-Repo-Commit" in changed:
            changed["X-Repo-Commit"] = f"../../{self.server.outside}"
        if lie == "no commit":
            changed.pop("X-Repo-Commit", None)
        if lie == "file names that lead out of the cache" and api:
            content = self._renamed(content)
        if lie == "an answer that is no JSON" and api:
            content = PAGE
        if lie == "an answer of another form" and api:
            content = b'["x", 3, null]'
        size = {"a larger size": 1000, "a smaller size": -20, "breaking off": 0}.get(lie or "")
        if weights and (size is not None or lie in ("a negative size", "no size")):
            if "X-Linked-Size" in changed and size:
                changed["X-Linked-Size"] = str(len(content) + size)
            return self._send_with_size(status, content, changed, size)
        return super()._send(status, content, changed)

    def _send_with_size(
        self, status: int, content: bytes, headers: Mapping[str, str], wrong: int | None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if wrong is not None:
            self.send_header("Content-Length", str(max(len(content) + wrong, 0)))
        elif self.server.lie == "a negative size":
            self.send_header("Content-Length", "-1")
        self.end_headers()
        self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if wrong == 0 else content)

    def _stall(self, content: bytes) -> None:
        if self.server.lie == "stalling in mid-file":
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[:100])
                self.wfile.flush()
        self.close_connection = True
        threading.Event().wait(STALL)

    def _renamed(self, content: bytes) -> bytes:
        answer: Any = json.loads(content)
        evil = f"model-/../../../../{self.server.outside}.safetensors"
        if isinstance(answer, dict) and "siblings" in answer:
            answer["siblings"].append({"rfilename": evil})
        if isinstance(answer, list) and answer and "path" in answer[0]:
            answer.append({**answer[0], "path": evil})
        return json.dumps(answer).encode()


class HostileHub(hub_server.HubServer):
    """The server; `lie` is one of `LIES`."""

    outside = "../../../../outside"

    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = _Handler
        self.lie: str | None = None
        self.failures = 0  # how many of the next requests are answered with 503
        self.asked = 0


@contextmanager
def running() -> Iterator[HostileHub]:
    """Run a server in the background; it is gone at the end."""
    with hub_server.running(HostileHub()) as server:
        assert isinstance(server, HostileHub)
        yield server
