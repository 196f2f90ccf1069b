"""A small Hub on loopback, which the real huggingface_hub client talks to in tests.

It speaks the part of the protocol that reading needs: metadata by HEAD, redirects of large files to a
storage address, ranges, refs, trees, search, and the Hub's own error headers for what is missing, gated,
private or asked for with a bad token. Repositories can be made and committed to, with large files through
the storage. It can die in the middle of a file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

GOOD_TOKEN = "hf_" + "a" * 34  # may read everything
STRANGER_TOKEN = "hf_" + "s" * 34  # a real account, without access to gated or private repositories
LARGE_SUFFIXES = (".safetensors", ".bin")  # what the Hub keeps in its large file storage


@dataclass
class Repository:
    """One model repository; `refs` maps branches and tags to commits, `commits` a commit to its files."""

    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    private: bool = False


class HubServer(ThreadingHTTPServer):
    """The server; use `running()`, add repositories, and give its address to the client."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.storage: dict[str, bytes] = {}  # uploaded, by SHA-256
        self.connections: list[socket.socket] = []
        self.dies_after: int | None = None
        self.status: int | None = None

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT should be."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | Path,
        *,
        revision: str = "main",
        gated: bool = False,
        private: bool = False,
    ) -> str:
        """Commit files (or the files of a directory) to a branch or tag; return the commit."""
        if isinstance(files, Path):
            files = {
                path.relative_to(files).as_posix(): path.read_bytes()
                for path in files.rglob("*")
                if path.is_file()
            }
        repository = self.repositories.setdefault(repo_id, Repository())
        repository.gated, repository.private = gated, private
        digest = hashlib.sha1(repr((repo_id, revision)).encode(), usedforsecurity=False)
        for name in sorted(files):
            digest.update(name.encode() + hashlib.sha256(files[name]).digest())
        commit = digest.hexdigest()
        repository.commits[commit] = dict(files)
        repository.refs[revision] = commit
        return commit

    def downloads(self, name: str) -> int:
        """Return how many times the content of a file was asked for."""
        return sum(1 for request in self.requests if request == f"GET {name}")

    def die(self) -> None:
        """Stop for good: connections are refused, and those that are open break."""
        self.socket.close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        threading.Thread(target=self.shutdown, daemon=True).start()

    def die_after(self, count: int) -> None:
        """Die once so many bytes of one large file were sent."""
        self.dies_after = count

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection, and keep it at hand for `die`."""
        self.connections.append(request)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep broken connections off the terminal; the client's side of them is what a test looks at."""


@contextmanager
def running(server: HubServer | None = None) -> Iterator[HubServer]:
    """Run a server in the background, by itself or a given one; it is gone at the end, whatever its state."""
    server = server or HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def environment(server: HubServer, home: Path) -> dict[str, str]:
    """Return the variables for a process whose Hub is this one and whose caches are under `home`."""
    return {
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }


def point_client_at(server: HubServer, home: Path, monkeypatch: Any) -> None:
    """Make the client of this process use this Hub, with caches under `home` and nobody logged in.

    The client reads its environment when it is imported, so its constants are set instead.
    """
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    timeout = 20

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        """Make repositories and branches, say how files are to be uploaded, and commit."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if self.server.status is not None:
            return self._refuse(self.server.status, None, "Internal Error")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token != GOOD_TOKEN:
            return self._refuse(403 if token == STRANGER_TOKEN else 401, None, "You may not write here")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        owner, name, verb, revision = path.removeprefix("/api/models/").split("/", 3)
        repository = self.server.repositories[f"{owner}/{name}"]
        if verb == "branch":
            if revision in repository.refs:
                return self._refuse(409, None, "the branch exists")
            repository.refs[revision] = repository.refs["main"]
            return self._json({})
        if verb == "preupload":
            modes = {True: "lfs", False: "regular"}
            files = [
                {
                    "path": f["path"],
                    "uploadMode": modes[f["path"].endswith(LARGE_SUFFIXES)],
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        assert verb == "commit"
        return self._commit_lines(f"{owner}/{name}", repository, revision, body)

    def do_PUT(self) -> None:
        """Take a large file; where the server is to die after so many bytes, it does."""
        length, limit = int(self.headers["Content-Length"]), self.server.dies_after
        content = self.rfile.read(length if limit is None else min(length, limit))
        if len(content) < length:
            self.close_connection = True
            return self.server.die()
        assert "Authorization" not in self.headers, "the token must not go to the storage"
        sha256 = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == sha256
        self.server.storage[sha256] = content
        return self._send(200, b"", {})

    def _create(self, wanted: Mapping[str, Any]) -> None:
        repo_id = (
            f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
        )
        address = {"url": f"{self.server.endpoint}/{repo_id}"}
        if repo_id in self.server.repositories:
            return self._send(409, json.dumps({"error": "it exists", **address}).encode(), {})
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.server.add(repo_id, {".gitattributes": b""}, private=bool(private))
        return self._json(address)

    def _batch(self, wanted: Mapping[str, Any]) -> None:
        storage = f"http://localhost:{self.server.server_address[1]}/storage"
        objects = [
            {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{storage}/{o['oid']}"}}}
            for o in wanted["objects"]
        ]
        return self._json({"transfer": "basic", "objects": objects})

    def _commit_lines(self, repo_id: str, repository: Repository, revision: str, body: bytes) -> None:
        files = dict(repository.commits[repository.refs[revision]])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.storage[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        pull = "create_pr=1" in self.path
        branch = "refs/pr/1" if pull else revision
        commit = self.server.add(repo_id, files, revision=branch, private=repository.private)
        address = f"{self.server.endpoint}/{repo_id}"
        answer = {"commitUrl": f"{address}/commit/{commit}", "commitOid": commit}
        return self._json(answer | ({"pullRequestUrl": f"{address}/discussions/1"} if pull else {}))

    def log_message(self, *_: object) -> None:
        """Keep the terminal of the tests clean."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        if self.server.status is not None:
            return self._refuse(self.server.status, None, "Internal Error")
        if path.startswith("/storage/"):
            return self._storage(path.rpartition("/")[2])
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in (GOOD_TOKEN, STRANGER_TOKEN):
            return self._refuse(401, None, "Invalid credentials in Authorization header")
        if path == "/api/models":
            return self._search(query.get("search", [""])[0])
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        repo_id, rest = "/".join(parts[:2]), parts[2:]
        repository = self.server.repositories.get(repo_id)
        if repository is None or (repository.private and token != GOOD_TOKEN):
            return self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        if api and not rest:
            return self._info(repo_id, repository, "main")
        if api and rest == ["refs"]:
            return self._refs(repository)
        if api and rest[0] == "revision":
            return self._info(repo_id, repository, "/".join(rest[1:]))
        if api and rest[0] == "tree":
            return self._tree(repository, rest[1])
        if not api and rest[0] == "resolve":
            if repository.gated and token != GOOD_TOKEN:
                return self._refuse(
                    403 if token else 401, "GatedRepo", f"Access to model {repo_id} is restricted."
                )
            return self._resolve(repository, rest[1:])
        return self._refuse(404, None, "Not found")

    def _resolve(self, repository: Repository, rest: list[str]) -> None:
        commit = self._commit(repository, rest[0])
        name = "/".join(rest[1:])
        if commit is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rest[0]}")
        content = repository.commits[commit].get(name)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if content is None:
            return self._refuse(404, "EntryNotFound", "Entry not found", headers)
        if not name.endswith(LARGE_SUFFIXES):
            self._note(name)
            return self._send(200, content, headers | {"ETag": f'"{_git_hash(content)}"'})
        sha256 = hashlib.sha256(content).hexdigest()
        headers |= {
            "X-Linked-Size": str(len(content)),
            "X-Linked-ETag": f'"{sha256}"',
            "ETag": f'"{_git_hash(content)}"',
        }
        headers["Location"] = f"http://localhost:{self.server.server_address[1]}/storage/{sha256}"
        return self._send(302, b"Found", headers)

    def _storage(self, sha256: str) -> None:
        for repository in self.server.repositories.values():
            for files in repository.commits.values():
                for name, content in files.items():
                    if hashlib.sha256(content).hexdigest() == sha256:
                        self._note(name)
                        assert "Authorization" not in self.headers, "the token must not go to the storage"
                        return self._send_range(content, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})
        return self._refuse(404, None, "Not found")

    def _send_range(self, content: bytes, headers: dict[str, str]) -> None:
        asked = self.headers.get("Range", "")
        if not asked.startswith("bytes="):
            return self._send(200, content, headers)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end = int(first), int(last) if last else len(content) - 1
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return self._send(206, content[start : end + 1], headers)

    def _info(self, repo_id: str, repository: Repository, revision: str) -> None:
        commit = self._commit(repository, revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        siblings = [{"rfilename": name} for name in sorted(repository.commits[commit])]
        gated = "manual" if repository.gated else False
        record = {
            "id": repo_id,
            "modelId": repo_id,
            "sha": commit,
            "private": repository.private,
            "gated": gated,
        }
        return self._json(record | {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def _tree(self, repository: Repository, revision: str) -> None:
        commit = self._commit(repository, revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        entries = []
        for name, content in sorted(repository.commits[commit].items()):
            entry: dict[str, Any] = {
                "type": "file", "path": name, "size": len(content), "oid": _git_hash(content)
            }  # fmt: skip
            if name.endswith(LARGE_SUFFIXES):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return self._json(entries)

    def _refs(self, repository: Repository) -> None:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in repository.refs.items()
        ]
        return self._json({"branches": branches, "converts": [], "tags": []})

    def _search(self, text: str) -> None:
        ids = sorted(
            repo_id for repo_id, repository in self.server.repositories.items() if not repository.private
        )
        return self._json(
            [{"id": repo_id, "modelId": repo_id} for repo_id in ids if text.lower() in repo_id.lower()]
        )

    def _commit(self, repository: Repository, revision: str) -> str | None:
        return revision if revision in repository.commits else repository.refs.get(revision)

    def _note(self, name: str) -> None:
        self.server.requests.append(f"{self.command} {name}")

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str | None, message: str, headers: Mapping[str, str] = {}) -> None:
        errors = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), dict(headers) | errors)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.server.dies_after
        if limit is None or len(content) <= limit:
            self.wfile.write(content)
            return
        self.wfile.write(content[:limit])
        self.wfile.flush()
        self.close_connection = True
        self.server.die()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
