"""A server of the Hugging Face hub's protocol over HTTP: what a client needs to push and pull.

Written from what huggingface-hub 2.4.0 sends and reads. Large files go through Git LFS; the hub's
Xet storage is not part of it. It refuses what the hub refuses: writing without a token that may,
private repositories for others, cards whose header is no YAML, LFS objects of another hash.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LFS = (".safetensors", ".png")


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1("\n".join(self.messages).encode()).hexdigest()


class HubServer(ThreadingHTTPServer):
    """Repositories by OWNER/NAME; `tokens` are those of HTTP requests, `writers` those accepted."""

    daemon_threads = True

    def __init__(self, writer: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.writer = writer
        self.objects: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.lines: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        self.server.lines.append(format % args)

    @property
    def token(self) -> str | None:
        value = self.headers.get("Authorization")
        return value.removeprefix("Bearer ") if value else None

    def send(self, status: int, document: Any = None, **headers: str) -> None:
        body = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, code: str = "", message: str = "refused") -> None:
        self.send(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def found(self, name: str) -> Repository | None:
        """Return a repository that the request may see; answer and return None otherwise."""
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and self.token != self.server.writer):
            self.refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
            return None
        return repository

    def do_POST(self) -> None:
        self.server.tokens.add(self.token)
        body, path = self.body(), unquote(urlsplit(self.path).path)
        if self.token != self.server.writer:
            return self.refuse(403 if self.token else 401, message="You may not write here")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            url = f"{self.server.address}/{name}"
            if name in self.server.repositories:
                return self.send(409, {"error": "You already created this model repo", "url": url})
            private = asked.get("visibility") == "private" or asked.get("private", False)
            self.server.repositories[name] = Repository(private)
            return self.send(200, {"url": url, "name": name})
        if path == "/api/validate-yaml":
            header = json.loads(body)["content"].split("---\n")[1]
            problems = [] if isinstance(yaml.safe_load(header), dict) else [{"message": "no map"}]
            return self.send(400 if problems else 200, {"errors": problems, "warnings": []})
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self.send(200, self.batch(json.loads(body)))
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        repository = self.found(match.group(1)) if match else None
        if match is None or repository is None:
            return None if match else self.refuse(404)
        if match.group(2) == "commit":
            self.commit(repository, body)
            page = f"{self.server.address}/{match.group(1)}/commit/{repository.sha}"
            return self.send(200, {"commitUrl": page, "commitOid": repository.sha})
        files = [each["path"] for each in json.loads(body)["files"]]
        modes = [
            {
                "path": name,
                "uploadMode": "lfs" if name.endswith(LFS) else "regular",
                "shouldIgnore": False,
            }
            for name in files
        ]
        return self.send(200, {"files": modes})

    def batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert "basic" in asked["transfers"]
        objects = [
            {
                **each,
                "actions": {"upload": {"href": f"{self.server.address}/lfs/{each['oid']}"}},
            }
            for each in asked["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def commit(self, repository: Repository, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    repository.messages.append(value["summary"])
                case "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    repository.files[value["path"]] = self.server.objects[value["oid"]]
                case "deletedFile":
                    del repository.files[value["path"]]

    def do_PUT(self) -> None:
        body, oid = self.body(), self.path.removeprefix("/lfs/")
        if hashlib.sha256(body).hexdigest() != oid:
            return self.refuse(400, message="another hash")
        self.server.objects[oid] = body
        return self.send(200)

    def do_GET(self) -> None:
        self.server.tokens.add(self.token)
        path = unquote(urlsplit(self.path).path)
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        if match is None:
            return self.send_file(path)
        repository = self.found(match.group(1))
        if repository is None:
            return None
        if match.group(3) not in (None, "main", repository.sha):
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        if match.group(2) == "tree":
            return self.send(200, [_described(n, data) for n, data in repository.files.items()])
        siblings = [{"rfilename": name} for name in repository.files]
        about = {"id": match.group(1), "sha": repository.sha, "private": repository.private}
        return self.send(200, {**about, "siblings": siblings, "tags": [], "downloads": 0})

    do_HEAD = do_GET

    def send_file(self, path: str) -> None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repository = self.found(match.group(1)) if match else None
        if match is None or repository is None:
            return None if match else self.refuse(404)
        data = repository.files.get(match.group(3))
        if data is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", repository.sha)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
        return None


def _described(name: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(data).hexdigest()
    return {"type": "file", "path": name, "size": len(data), "oid": oid}


@contextmanager
def hub_server(writer: str) -> Iterator[HubServer]:
    """Run a server for the length of the block; `writer` is the token that may write."""
    server = HubServer(writer)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
