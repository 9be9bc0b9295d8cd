"""A stand-in for the Hub's API on this machine: repositories, uploads, commits, one token."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_only_of_the_tests"


class Hub:
    """What the stand-in holds, and what it is to do.

    Attributes
    ----------
    repos : dict
        Of each name ``private`` and ``files``, path to content.
    lfs : bool
        Whether large files go another way, as on the Hub.
    fails : str
        The last part of a path that is answered with 403.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.commits = 0
        self.lfs, self.fails, self.url = False, "", ""
        self.seen: list[str] = []

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON."""
        self.seen.append(f"{method} {path}")
        path, _, _ = path.partition("?")
        if self.fails and path.endswith(self.fails):
            return 403, {"error": f"not for {TOKEN}"}
        if method == "PUT":
            self.objects[path.rpartition("/")[2]] = body
            return 200, {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            private = asked.get("private", asked.get("visibility") == "private")
            self.repos[name] = {"private": private, "files": {}}
            return 200, {"url": f"{self.url}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = [
                {**one, "actions": {"upload": {"href": f"{self.url}/put/{one['oid']}"}}}
                for one in objects
            ]
            return 200, {"transfer": "basic", "objects": actions}
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w[\w-]*)/main)?(?:/.*)?", path)
        if found is None or found[1] not in self.repos:
            return 404, {"error": "Repository not found"}
        return 200, self.of_repository(found[1], found[2], body)

    def of_repository(self, name: str, what: str | None, body: bytes) -> Any:
        """A repository's answers."""
        repo = self.repos[name]
        if what == "preupload":
            mode = "lfs" if self.lfs else "regular"
            files = [
                {"path": one["path"], "uploadMode": mode if one["size"] > 999 else "regular"}
                for one in json.loads(body)["files"]
            ]
            return {"files": [{**one, "shouldIgnore": False, "oid": None} for one in files]}
        if what == "tree":
            return [
                {"type": "file", "path": path, "oid": "0", "size": len(content)}
                for path, content in repo["files"].items()
            ]
        if what == "commit":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    repo["files"][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repo["files"][value["path"]] = self.objects[value["oid"]]
                elif line["key"] == "deletedFile":
                    del repo["files"][value["path"]]
            self.commits += 1
            url = f"{self.url}/{name}/commit/{'0' * 40}"
            return {"success": True, "commitUrl": url, "commitOid": "0" * 40}
        siblings = [{"rfilename": path} for path in repo["files"]]
        return {"id": name, "private": repo["private"], "siblings": siblings, "sha": "0" * 40}


@contextmanager
def served() -> Iterator[Hub]:
    """A hub at ``hub.url``, for as long as the block lasts."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if allowed or self.command == "PUT":  # whose address is the secret
                status, content = hub.answer(self.command, self.path, body)
            else:
                status, content = 401, {"error": "Invalid credentials in Authorization header"}
            told = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(told)))
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            if status == 401:
                self.send_header("X-Error-Message", "Invalid credentials in Authorization header")
            self.end_headers()
            self.wfile.write(told)

        do_GET = do_POST = do_PUT = do_DELETE = handle_any

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def oid(content: bytes) -> str:
    """What LFS calls a file."""
    return hashlib.sha256(content).hexdigest()
