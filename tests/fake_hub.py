"""A stand-in for the Hugging Face Hub on this machine: the part of its HTTP API that a push uses.

It knows one user, `me`, whose token is `hf_good`; `hf_read` may only read. Files are kept in
memory; weights come by the protocol of Git LFS, as on the Hub where a client cannot speak Xet, and
a commit names them by their hash. Everything that is asked of it is noted.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

TOKENS = {"Bearer hf_good": True, "Bearer hf_read": False}  # whether it may write


@dataclasses.dataclass
class Repo:
    private: bool
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    commits: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Hub:
    endpoint: str = ""
    repos: dict[str, Repo] = dataclasses.field(default_factory=dict)
    asked: list[str] = dataclasses.field(default_factory=list)
    large: dict[str, bytes] = dataclasses.field(default_factory=dict)  # by hash
    broken: int = 0  # the status that creating a repository is answered with, if not 0
    broken_upload: int = 0  # and that of large files


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_):
        pass

    def answer(self, status, content=None, error=""):
        if content is None:
            content = {"error": error}
        body = json.dumps(content).encode()
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        self.act("")

    do_HEAD = do_GET

    def do_PUT(self):
        """A large file, at the address that `batch` gave for it."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rsplit("/", 1)[1]
        self.hub.asked.append(f"PUT {self.path}")
        if self.hub.broken_upload:
            return self.answer(self.hub.broken_upload)
        if hashlib.sha256(content).hexdigest() != oid:
            return self.answer(400)
        self.hub.large[oid] = content
        return self.answer(200)

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.act(body.decode())

    def act(self, body):
        path = urlparse(self.path).path
        self.hub.asked.append(f"{self.command} {path}")
        token = self.headers.get("Authorization")
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/whoami-v2":
            return self.answer(200, {"name": "me"}) if token in TOKENS else self.answer(401)
        if path == "/api/repos/create":
            return self.create(json.loads(body), token)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(json.loads(body))
        _, api, models, owner, name, *rest = [*path.split("/"), "", "", "", "", ""]
        repo = self.hub.repos.get(f"{owner}/{name}")
        if (api, models) != ("api", "models"):
            return self.answer(404, error="EntryNotFound")
        # As the Hub does, which says so of a repository that an unknown asks for.
        if token not in TOKENS:
            return self.answer(401, error="RepoNotFound")
        if repo is None:
            return self.answer(404, error="RepoNotFound")
        return self.of_repo(repo, f"{owner}/{name}", rest[0], body, TOKENS[token])

    def create(self, given, token):
        if self.hub.broken:
            return self.answer(self.hub.broken)
        if token not in TOKENS:
            return self.answer(401)
        if not TOKENS[token] or given.get("organization") != "me":
            return self.answer(403)
        name = f"{given['organization']}/{given['name']}"
        # "private" of older libraries is "visibility" of newer ones.
        private = given.get("visibility", "private" if given.get("private") else "") == "private"
        self.hub.repos[name] = Repo(private)
        return self.answer(200, {"url": f"{self.hub.endpoint}/{name}", "name": name})

    def batch(self, given):
        """Where to put the large files that are not here yet."""
        objects = []
        for one in given["objects"]:
            href = f"{self.hub.endpoint}/large/{one['oid']}"
            actions = {} if one["oid"] in self.hub.large else {"upload": {"href": href}}
            objects.append(one | ({"actions": actions} if actions else {}))
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def of_repo(self, repo, name, what, body, may_write):
        if what == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": modes})
        if what == "tree":
            entries = [{"type": "file", "path": p, "size": len(c)} for p, c in repo.files.items()]
            return self.answer(200, [{**entry, "oid": "0"} for entry in entries])
        if what == "commit":
            if not may_write:
                return self.answer(403)
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    repo.commits.append(value["summary"])
                elif line["key"] == "file":
                    repo.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repo.files[value["path"]] = self.hub.large[value["oid"]]
                elif line["key"] == "deletedFile":
                    del repo.files[value["path"]]
            made = {"commitUrl": f"{self.hub.endpoint}/{name}/commit/0", "commitOid": "0"}
            return self.answer(200, {"success": True, "hookOutput": "", **made})
        siblings = [{"rfilename": path} for path in repo.files]
        found = {"id": name, "sha": "0", "private": repo.private, "siblings": siblings}
        return self.answer(200, {"_id": "0", "modelId": name, "tags": [], **found})


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """The stand-in at `hub.endpoint`, while the context lasts."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
