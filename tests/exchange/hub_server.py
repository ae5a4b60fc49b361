"""A hub on this machine: the few calls that pushing and fetching make, over HTTP, with what was uploaded in memory.

Failures can be asked for: a download that breaks off after so many bytes, an upload that is refused, bytes that arrive
changed.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".parquet")


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0
    sdk: str | None = None

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{self.commits}".encode()).hexdigest()


@dataclass
class Hub:
    """What the server holds, what it was asked, and how it is to fail."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    break_off: str | None = None
    """Name of a file of whose bytes the connection sends half, and ends."""
    refuse_uploads: bool = False
    change: str | None = None
    """Name of a file whose first byte arrives changed."""
    url: str = ""


def _key(kind: str, name: str) -> str:
    return f"{kind}s/{name}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments):
        pass

    def _answer(self, status: int, body: object = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, what: str) -> None:
        self._answer(404, {"error": what}, X_Error_Code=what, X_Error_Message=what)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self._body()
        self.hub.requests.append(f"POST {path}")
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := re.fullmatch(r"/api/(model|space)s/([^/]+/[^/]+)/preupload/main", path):
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif found := re.fullmatch(r"/api/(model|space)s/([^/]+/[^/]+)/commit/main", path):
            self._commit(found[1], found[2], body)
        else:
            self._missing("EntryNotFound")

    def _create(self, asked: dict) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        kind, private = asked.get("type") or "model", asked.get("private", asked.get("visibility") == "private")
        key = _key(kind, name)
        if key in self.hub.repositories:
            self._answer(409, {"error": "exists", "url": f"{self.hub.url}/{name}"})
            return
        self.hub.repositories[key] = Repository(bool(private), sdk=asked.get("sdk"))
        self._answer(200, {"url": f"{self.hub.url}/{'spaces/' if kind == 'space' else ''}{name}"})

    def _batch(self, asked: dict) -> None:
        objects = []
        for wanted in asked["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}", "header": {}}}
            objects.append(entry)
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, kind: str, name: str, body: bytes) -> None:
        repository = self.hub.repositories[_key(kind, name)]
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            if entry["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.objects[value["oid"]]
        repository.commits += 1
        url = f"{self.hub.url}/{'spaces/' if kind == 'space' else ''}{name}/commit/{repository.sha}"
        self._answer(200, {"success": True, "commitUrl": url, "commitOid": repository.sha})

    def do_PUT(self) -> None:
        data = self._body()
        self.hub.requests.append(f"PUT {len(data)}")
        if self.hub.refuse_uploads:
            self._answer(403, {"error": "no room"})
            return
        self.hub.objects[hashlib.sha256(data).hexdigest()] = data
        self._answer(200)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if found := re.fullmatch(r"/api/(model|space)s/([^/]+/[^/]+)(/revision/(.+))?", path):
            self._info(found[1], found[2], found[4])
        elif found := re.fullmatch(r"/(spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file("space" if found[1] else "model", found[2], found[4])
        elif found := re.fullmatch(r"/api/(model|space)s/([^/]+/[^/]+)/tree/[^/]+(?:/.*)?", path):
            repository = self.hub.repositories[_key(found[1], found[2])]
            self._answer(200, [_entry(name, data) for name, data in sorted(repository.files.items())])
        else:
            self._missing("EntryNotFound")

    def _info(self, kind: str, name: str, revision: str | None) -> None:
        repository = self.hub.repositories.get(_key(kind, name))
        if repository is None:
            self._missing("RepoNotFound")
        elif revision not in (None, "main", repository.sha):
            self._missing("RevisionNotFound")
        else:
            siblings = [{"rfilename": file} for file in sorted(repository.files)]
            facts = {"id": name, "sha": repository.sha, "private": repository.private, "siblings": siblings}
            self._answer(200, {**facts, "tags": [], "downloads": 0, "likes": 0})

    def _file(self, kind: str, name: str, file: str) -> None:
        repository = self.hub.repositories.get(_key(kind, name))
        if repository is None:
            self._missing("RepoNotFound")
            return
        if file not in repository.files:
            self._missing("EntryNotFound")
            return
        data = repository.files[file]
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X_Repo_Commit": repository.sha,
            "Accept_Ranges": "bytes",
        }
        if file == self.hub.change:
            data = bytes([data[0] ^ 1]) + data[1:]
        if self.command == "HEAD":
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            return
        start = int(found[1]) if (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        part = data[start:]
        if file == self.hub.break_off:
            self._break_off(part, headers)
            return
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._answer(206 if start else 200, part, **headers)

    def _break_off(self, part: bytes, headers: dict[str, str]) -> None:
        """Send some bytes of what was promised and end the connection."""
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(part))}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(part[: len(part) // 2])
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()


def _entry(name: str, data: bytes) -> dict:
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


class Server:
    """A hub that serves while the block runs."""

    def __enter__(self) -> Hub:
        hub = Hub()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
        hub.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return hub

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
