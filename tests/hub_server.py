"""Stands in for the Hugging Face Hub: keeps the models that are pushed to it, and serves them."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_owner"
OF_THE_LIBRARY = ("/api/agent-harnesses",)  # not about models


@dataclass
class Model:
    """A repository: its files at each commit, the newest last."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        """Add or replace files."""
        whole = (self.files() if self.commits else {}) | files
        digest = hashlib.sha1(repr((len(self.commits), sorted(whole.items()))).encode()).hexdigest()
        self.commits[digest] = whole
        return digest

    def at(self, revision: str) -> str | None:
        """The commit of a revision, None if there is none."""
        return list(self.commits)[-1] if revision == "main" else revision if revision in self.commits else None

    def files(self) -> dict[str, bytes]:
        """The newest files."""
        return list(self.commits.values())[-1]


class Hub(http.server.ThreadingHTTPServer):
    """The server: its models by name, what it was asked for, and the status it gives to all, if it is out of order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: dict[str, Model] = {}
        self.asked: list[tuple[str, str]] = []
        self.broken: int | None = None

    @property
    def url(self) -> str:
        """The address."""
        return f"http://127.0.0.1:{self.server_port}"


class Refused(Exception):
    """An answer that is an error: the status and the hub's code for it."""


class Handler(http.server.BaseHTTPRequestHandler):
    """The part of the hub's API that downloads and pushes use."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer any request."""
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path not in OF_THE_LIBRARY:
            self.server.asked.append((self.command, path))
        try:
            if self.server.broken:
                raise Refused(self.server.broken, "")
            self.answer(200, *self.found(path, body))
        except Refused as refusal:
            status, code = refusal.args
            self.answer(status, b"{}", {"X-Error-Code": code} if code else {})

    do_HEAD = do_POST = do_GET

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        """Send it; of a HEAD request the headers alone."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def is_owner(self) -> bool:
        """Whether the owner asks."""
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def model(self, name: str) -> Model:
        """A model that is there for who asks."""
        model = self.server.models.get(name)
        if model is None or (model.private and not self.is_owner):
            raise Refused(404 if self.is_owner else 401, "RepoNotFound")
        return model

    def found(self, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        """The content and headers of what was asked for."""
        if path.startswith("/api/") and self.command == "POST":
            return json.dumps(self.posted(path, body)).encode(), {}
        resolved = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        listed = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path)
        told = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
        asked = resolved or listed or told
        if asked is None:
            raise Refused(404, "")
        model = self.model(asked[1])
        commit = model.at(asked[2] or "main")
        if commit is None:
            raise Refused(404, "RevisionNotFound")
        files = model.commits[commit]
        if resolved:
            if resolved[3] not in files:
                raise Refused(404, "EntryNotFound")
            content = files[resolved[3]]
            return content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": commit}
        if listed:
            return json.dumps([_entry(*file) for file in files.items()]).encode(), {}
        return json.dumps({"id": asked[1], "sha": commit, "private": model.private, "siblings": []}).encode(), {}

    def posted(self, path: str, body: bytes) -> dict[str, Any]:
        """What comes of a request that changes something."""
        if path == "/api/validate-yaml":
            return {"warnings": [], "errors": []}
        if not self.is_owner:
            raise Refused(401, "")
        if path == "/api/repos/create":
            return self.created(json.loads(body))
        named = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        assert named, path
        model = self.model(named[1])
        if named[2] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        lines = [json.loads(line) for line in body.splitlines()]
        files = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
        commit = model.commit({name: base64.b64decode(content) for name, content in files.items()})
        return {"commitUrl": f"{self.server.url}/{named[1]}/commit/{commit}", "commitOid": commit}

    def created(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The address of a repository, made where there is none."""
        name = f"{asked['organization']}/{asked['name']}"
        if name not in self.server.models:
            self.server.models[name] = Model(asked.get("visibility") == "private")
            self.server.models[name].commit({".gitattributes": b""})
        return {"url": f"{self.server.url}/{name}"}


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
