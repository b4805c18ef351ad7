"""A hub on loopback that keeps repositories in memory and answers the real client: made, read, written in one commit."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlparse

LARGE = (".safetensors", ".parquet")
"""Files that go to large storage."""
TOKEN = "hf_loopback"
"""May write to repositories of `me`."""


class LoopbackHub(BaseHTTPRequestHandler):
    """Repositories by name, each with its files; `uploads` is the large storage, by SHA-256."""

    repos: dict[str, dict[str, bytes]]
    private: dict[str, bool]
    uploads: dict[str, bytes]
    puts: list[str]
    """Digests of what was uploaded, in order."""
    fail_after: int | None = None
    """Uploads after which the connection breaks."""
    commits = 0

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        parts = urlparse(self.path).path.strip("/").split("/")
        if parts[0] == "api" and parts[1] == "whoami-v2":
            return self.json({"name": "me", "type": "user", "orgs": []}, 200 if self.authorized() else 401)
        if parts[:2] == ["api", "models"]:
            return self.info("/".join(parts[2:4]))
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
        oid = f"{self.commits:040x}"
        self.json({"success": True, "commitOid": oid, "commitUrl": f"{self.page(repo)}/commit/{oid}"})

    def info(self, repo: str) -> None:
        if repo not in self.repos:
            return self.json({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        siblings = []
        for name, content in self.repos[repo].items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            large = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
            one = {"rfilename": name, "size": len(content), "blobId": blob}
            siblings.append(one | ({"lfs": large} if name.endswith(LARGE) else {}))
        private = self.private[repo]
        return self.json({"id": repo, "private": private, "sha": f"{self.commits:040x}", "siblings": siblings})

    def file(self, repo: str, name: str) -> None:
        content = self.repos.get(repo, {}).get(name)
        commit = {"X-Repo-Commit": f"{self.commits:040x}"}
        if content is None:
            return self.json({}, 404, {"X-Error-Code": "EntryNotFound"} | commit)
        self.answer(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'} | commit)
        return None

    def page(self, repo: str) -> str:
        return f"{self.host()}/{repo}"

    def host(self) -> str:
        return f"http://{self.headers['Host']}"

    def json(self, content: dict, status: int = 200, extra: dict[str, str] | None = None) -> None:
        self.answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"} | (extra or {}))

    def answer(self, status: int, content: bytes, extra: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | extra).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def serve() -> tuple[type[LoopbackHub], str]:
    """A hub of its own, and its address."""
    kind = type("Hub", (LoopbackHub,), {"repos": {}, "private": {}, "uploads": {}, "puts": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    Thread(target=server.serve_forever, daemon=True).start()
    return kind, f"http://127.0.0.1:{server.server_port}"
