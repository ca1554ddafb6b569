"""A local server of the part of Cloud Storage's JSON API that TensorStore speaks, with faults.

Objects lie in a folder (or in memory), so that they outlast a server, and can be looked at:

    with Server(folder, Faults(unavailable_every=7)) as server:
        env = server.environment()   # for the process that is to write to gs://…

What a real store does and a disk does not: a request in `unavailable_every` is answered 503, or
each in `down`; of the uploads one in `lost_every` is done, and its connection then dropped before the answer; a
listing shows what was there `listing_lag_s` ago; pages of a listing are short. A `Trap` runs when
a request comes, or is done, such as to kill the process that made it.
"""

import dataclasses
import fnmatch
import http.server
import io
import json
import pathlib
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import Self

_PAGE = 50


@dataclasses.dataclass
class Faults:
    unavailable_every: int = 0  # requests; 0: never
    lost_every: int = 0  # uploads; 0: never
    listing_lag_s: float = 0.0
    down: range = range(0)  # which requests by their number, from 1, are answered 503


@dataclasses.dataclass
class Trap:
    """Springs once, at the first request of this kind for an object of such a name."""

    method: str  # POST, DELETE or GET
    pattern: str  # of fnmatch, of the name in its bucket
    spring: Callable[[], None]
    is_done: bool  # whether the request is done by then; it is never answered
    sprung: bool = False

    def matches(self, method: str, name: str) -> bool:
        if self.sprung or method != self.method:
            return False
        return fnmatch.fnmatch(name, self.pattern)


@dataclasses.dataclass
class _Object:
    content: bytes
    generation: int


class Store:
    """Objects of all buckets by `bucket/name`; a lock guards them, because threads answer."""

    def __init__(self, folder: pathlib.Path | None):
        self.folder = folder
        self.lock = threading.Lock()
        self.objects: dict[str, _Object] = {}
        self.changes: list[tuple[float, str, bool]] = []  # time, name, whether it is there since
        self.generation = time.time_ns() // 1000
        if folder is None:
            return
        for file in folder.iterdir():
            name = urllib.parse.unquote(file.name)
            self.generation += 1
            self.objects[name] = _Object(file.read_bytes(), self.generation)

    def _file(self, name: str) -> pathlib.Path | None:
        if self.folder is None:
            return None
        return self.folder / urllib.parse.quote(name, safe="")

    def put(self, name: str, content: bytes) -> int:
        self.generation += 1
        self.changes.append((time.monotonic(), name, name in self.objects))
        self.objects[name] = _Object(content, self.generation)
        if file := self._file(name):
            file.write_bytes(content)
        return self.generation

    def delete(self, name: str) -> None:
        self.changes.append((time.monotonic(), name, True))
        del self.objects[name]
        if file := self._file(name):
            file.unlink()

    def names(self, lag_s: float) -> list[str]:
        """What a listing shows: the names of `lag_s` ago."""
        shown = set(self.objects)
        now = time.monotonic()
        for at, name, was_there in reversed(self.changes):
            if now - at > lag_s:
                break
            shown.discard(name)
            if was_there:
                shown.add(name)
        return sorted(shown)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Answers leave in one piece: else each waits 40 ms for the client's acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: "Server"

    def log_message(self, *_):
        pass

    def _begin(self) -> tuple[list[str], dict[str, str], bytes]:
        """The request; the body is read whatever the answer, as the connection is kept."""
        parts = urllib.parse.urlsplit(self.path)
        asked = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        path = [urllib.parse.unquote(part) for part in parts.path.split("/")[1:]]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return path, asked, body

    def _answer(self, code: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _handle(self) -> None:
        path, asked, body = self._begin()
        server = self.server
        with server.store.lock:
            name = asked.get("name") or "/".join(path[5:])
            server.requests.append((self.command, name))
            trap = server.trap
            if trap and trap.matches(self.command, name):
                return self._spring(trap, path, asked, body)
            every = server.faults.unavailable_every
            number = len(server.requests)
            if (every and number % every == 0) or number in server.faults.down:
                return self._answer(503)
            return self._do(path, asked, body)

    def _do(self, path: list[str], asked: dict[str, str], body: bytes) -> None:
        if path[0] == "upload":
            return self._upload(path[4], asked, body)
        bucket, name = path[3], "/".join(path[5:])
        if self.command == "DELETE":
            return self._delete(f"{bucket}/{name}", asked)
        if not name:
            return self._list(bucket, asked)
        return self._read(f"{bucket}/{name}", asked)

    def _spring(self, trap: Trap, path: list[str], asked: dict[str, str], body: bytes) -> None:
        trap.sprung = True
        if trap.is_done:
            answers, self.wfile = self.wfile, io.BytesIO()
            self._do(path, asked, body)
            self.wfile = answers
        trap.spring()
        self.close_connection = True

    do_GET = do_POST = do_DELETE = _handle

    def _is_refused(self, name: str, asked: dict[str, str]) -> bool:
        """Whether the precondition does not hold; generation 0 is that of no object."""
        wanted = asked.get("ifGenerationMatch")
        held = self.server.store.objects.get(name)
        return wanted is not None and int(wanted) != (held.generation if held else 0)

    def _upload(self, bucket: str, asked: dict[str, str], body: bytes) -> None:
        name = f"{bucket}/{asked['name']}"
        if self._is_refused(name, asked):
            return self._answer(412)
        server = self.server
        server.store.put(name, body)
        server.uploads += 1
        if server.faults.lost_every and server.uploads % server.faults.lost_every == 0:
            self.close_connection = True
            return None
        return self._answer(200, self._about(name), Content_Type="application/json")

    def _about(self, name: str) -> bytes:
        held = self.server.store.objects[name]
        about = {"name": name.partition("/")[2], "generation": str(held.generation)}
        return json.dumps(about | {"size": str(len(held.content))}).encode()

    def _delete(self, name: str, asked: dict[str, str]) -> None:
        if self._is_refused(name, asked):
            return self._answer(412)
        if name not in self.server.store.objects:
            return self._answer(404)
        self.server.store.delete(name)
        return self._answer(204)

    def _list(self, bucket: str, asked: dict[str, str]) -> None:
        names = []
        for each in self.server.store.names(self.server.faults.listing_lag_s):
            holder, _, name = each.partition("/")
            is_after = name >= asked.get("startOffset", "")
            is_before = not asked.get("endOffset") or name < asked["endOffset"]
            is_asked = holder == bucket and name.startswith(asked.get("prefix", ""))
            if is_asked and is_after and is_before:
                names.append(name)
        names = [name for name in names if name > asked.get("pageToken", "")]
        page = names[:_PAGE]
        answer: dict = {"items": [{"name": name} for name in page]}
        if len(names) > _PAGE:
            answer["nextPageToken"] = page[-1]
        return self._answer(200, json.dumps(answer).encode(), Content_Type="application/json")

    def _read(self, name: str, asked: dict[str, str]) -> None:
        held = self.server.store.objects.get(name)
        if held is None:
            return self._answer(404)
        if asked.get("alt") != "media":
            return self._answer(200, self._about(name), Content_Type="application/json")
        if asked.get("ifGenerationNotMatch") == str(held.generation):
            return self._answer(304)
        content, code = held.content, 200
        headers = {"x_goog_generation": str(held.generation)}
        if "Range" in self.headers:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            if int(first) >= len(content):
                return self._answer(416)
            end = min(int(last) + 1, len(content)) if last else len(content)
            headers["Content_Range"] = f"bytes {first}-{end - 1}/{len(content)}"
            content, code = content[int(first) : end], 206
        return self._answer(code, content, **headers)


class Server(http.server.ThreadingHTTPServer):
    """Listens on a free port of this machine while its context lasts."""

    daemon_threads = True

    def __init__(self, folder: pathlib.Path | None = None, faults: Faults | None = None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = Store(folder)
        self.faults = faults or Faults()
        self.requests: list[tuple[str, str]] = []
        self.trap: Trap | None = None
        self.uploads = 0

    def handle_error(self, *_):
        """A client that was killed has hung up: nothing to say."""

    def environment(self) -> dict[str, str]:
        """Variables with which TensorStore takes this for Cloud Storage."""
        port = self.server_address[1]
        return {
            "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{port}",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "of-nobody",
        }

    def content(self, address: str) -> dict[str, bytes]:
        """The objects under `bucket/folder`, by their names from there."""
        prefix = address.removeprefix("gs://").rstrip("/") + "/"
        with self.store.lock:
            found = {}
            for name, held in self.store.objects.items():
                if name.startswith(prefix):
                    found[name.removeprefix(prefix)] = held.content
            return found

    def __enter__(self) -> Self:
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()
