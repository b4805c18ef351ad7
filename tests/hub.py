"""A hub on loopback that the hub's own client talks to: repositories in memory, made, written in one commit, and read.

It also fails on purpose: GET /mode/MODE makes it answer as MODES says.
"""

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlparse

LARGE = (".safetensors", ".parquet")
"""Files that go to large storage."""
TOKEN = "hf_loopback"
"""May write to repositories of `me`."""

STATUSES = {"401": 401, "gated": 403, "404": 404, "429": 429, "500": 500}
MODES = (*STATUSES, "hangs", "refuses", "partial", "cut", "whole")
"""`partial` lacks the weights, `cut` breaks off within them, `whole` is fine. Each mode that is set is another commit: the
client's cache remembers which files a commit lacks."""
HEADERS = {"gated": {"X-Error-Code": "GatedRepo"}, "429": {"Retry-After": "17"}}


class LoopbackHub(BaseHTTPRequestHandler):
    """Repositories by name, each with its files; `uploads` is the large storage, by SHA-256."""

    repos: dict[str, dict[str, bytes]]
    private: dict[str, bool]
    uploads: dict[str, bytes]
    puts: list[str]
    """Digests of what was uploaded, in order."""
    asked: list[str]
    """Paths of all GET and HEAD requests."""
    tags = ("main", "v1")
    """Names of every repository's only commit."""
    mode = "whole"
    fail_after: int | None = None
    """Uploads after which the connection breaks."""
    commits = 0

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    @classmethod
    def commit_id(cls) -> str:
        return f"{cls.commits:040x}"

    @classmethod
    def add(cls, repo: str, folder: Path) -> None:
        """A repository with the files of a folder."""
        found = (path for path in sorted(folder.rglob("*")) if path.is_file())
        cls.repos[repo] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        self.asked.append(path)
        parts = path.strip("/").split("/")
        if parts[0] == "mode":
            type(self).mode = parts[1]
            type(self).commits += 1
            return self.answer(200, b"")
        if self.mode in STATUSES:
            return self.answer(STATUSES[self.mode], b"", HEADERS.get(self.mode))
        if self.mode == "hangs":
            return time.sleep(0.6)
        if self.mode == "refuses":
            return self.connection.close()
        if parts[:2] == ["api", "whoami-v2"]:
            return self.json({"name": "me", "type": "user", "orgs": []}, 200 if self.authorized() else 401)
        if parts[:2] == ["api", "models"]:
            return self.info("/".join(parts[2:4]), parts[4:])
        if len(parts) > 4 and parts[2] == "resolve":
            return self.file("/".join(parts[:2]), "/".join(parts[4:]))
        return self.json({}, 404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        parts = urlparse(self.path).path.strip("/").split("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.authorized():
            return self.json({"error": "unauthorized"}, 401)
        if parts[:3] == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        if parts[-1] == "validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if parts[-1] == "batch":
            return self.batch(json.loads(body))
        if "preupload" in parts:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular"} for f in files]
            return self.json({"files": [mode | {"shouldIgnore": False} for mode in modes]})
        if "commit" in parts:
            return self.commit("/".join(parts[2:4]), body.decode().splitlines())
        return self.json({"error": f"no {self.path}"}, 404)

    def do_PUT(self) -> None:
        if self.fail_after is not None and len(self.puts) >= self.fail_after:
            self.connection.close()
            return
        content = self.rfile.read(int(self.headers["Content-Length"]))
        name = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == name
        self.uploads[name] = content
        self.puts.append(name)
        self.json({})

    def authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def create(self, asked: dict) -> None:
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if not repo.startswith("me/"):
            return self.json({"error": "forbidden"}, 403)
        if repo in self.repos:
            return self.json({"error": "exists", "url": self.page(repo)}, 409)
        self.repos[repo] = {}
        self.private[repo] = asked.get("private") or asked.get("visibility") == "private"
        return self.json({"url": self.page(repo), "name": repo})

    def batch(self, asked: dict) -> None:
        objects = []
        for one in asked["objects"]:
            href = f"{self.host()}/upload/{one['oid']}"
            actions = {} if one["oid"] in self.uploads else {"actions": {"upload": {"href": href, "header": {}}}}
            objects.append({"oid": one["oid"], "size": one["size"]} | actions)
        self.json({"transfer": "basic", "objects": objects})

    def commit(self, repo: str, lines: list[str]) -> None:
        type(self).commits += 1
        for line in map(json.loads, lines):
            value = line["value"]
            if line["key"] == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.repos[repo][value["path"]] = self.uploads[value["oid"]]
        oid = self.commit_id()
        self.json({"success": True, "commitOid": oid, "commitUrl": f"{self.page(repo)}/commit/{oid}"})

    def info(self, repo: str, rest: list[str]) -> None:
        """What a repository holds, as its info or (`tree/REVISION`) as a list of files."""
        if repo not in self.repos:
            return self.json({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if len(rest) > 1 and rest[1] not in (*self.tags, self.commit_id()):
            return self.json({}, 404, {"X-Error-Code": "RevisionNotFound"})
        siblings, tree = [], []
        for name, content in self.repos[repo].items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            large = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
            one = {"rfilename": name, "size": len(content), "blobId": blob}
            siblings.append(one | ({"lfs": large} if name.endswith(LARGE) else {}))
            tree.append({"type": "file", "path": name, "size": len(content), "oid": blob})
        if rest[:1] == ["tree"]:
            return self.json(tree)
        private = self.private.get(repo, False)
        return self.json({"id": repo, "private": private, "sha": self.commit_id(), "siblings": siblings})

    def file(self, repo: str, name: str) -> None:
        content = self.repos.get(repo, {}).get(name)
        commit = {"X-Repo-Commit": self.commit_id()}
        weights = name.endswith(".safetensors")
        if content is None or (weights and self.mode == "partial"):
            return self.json({}, 404, {"X-Error-Code": "EntryNotFound"} | commit)
        tag = {"ETag": f'"{self.mode}{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        length = {"Content-Length": str(len(content))}
        sent = content[: len(content) // 2] if weights and self.mode == "cut" else content
        return self.answer(200, sent, tag | commit | length)

    def page(self, repo: str) -> str:
        return f"{self.host()}/{repo}"

    def host(self) -> str:
        return f"http://{self.headers['Host']}"

    def json(self, content: object, status: int = 200, extra: dict[str, str] | None = None) -> None:
        self.answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"} | (extra or {}))

    def answer(self, status: int, content: bytes, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | (extra or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.close_connection = True


@contextmanager
def serving() -> Iterator[tuple[type[LoopbackHub], str]]:
    """A hub of its own, and its address."""
    kind = type("Hub", (LoopbackHub,), {"repos": {}, "private": {}, "uploads": {}, "puts": [], "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield kind, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
