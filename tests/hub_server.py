"""A small hub on 127.0.0.1: repositories are folders, files are served whole or by range."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""Of every main branch."""


@dataclass
class Hub:
    """What the server serves and what it has been asked for.

    Attributes:
        repositories: name -> folder; ``name@revision`` for others than the main branch.
        gated: names that need permission.
        reads: (file, first byte, bytes sent) of every read of a large file: weights or rows.
        fail_after: number of such reads after which answers break off half-way; None for never.
        ranges: whether ranged reads are answered as such.
    """

    repositories: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    reads: list[tuple[str, int, int]] = field(default_factory=list)
    fail_after: int | None = None
    ranges: bool = True
    url: str = ""

    def sent(self) -> int:
        """Bytes of weight files sent."""
        return sum(count for _, _, count in self.reads)


def serve(hub: Hub) -> ThreadingHTTPServer:
    """Start serving in a thread; the caller shuts the server down."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Else every answer waits 40 ms for the acknowledgement of its headers.
        disable_nagle_algorithm = True

        def log_message(self, *args) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            parts = [unquote(part) for part in urlparse(self.path).path.strip("/").split("/")]
            api = parts[:1] == ["api"] and parts[1] in ("models", "datasets")
            if parts[0] == "datasets":
                del parts[0]
            name = "/".join(parts[2:4] if api else parts[:2])
            revision = "/".join(parts[5:]) if api else parts[3]
            if name in hub.gated:
                return self.send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask first"}, body)
            if name not in hub.repositories:
                return self.send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
            found = self.find(name, revision)
            if found is None:
                return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
            folder, commit = found
            if api:
                return self.send(200, json.dumps(self.info(name, folder, commit)).encode(), {}, body)
            path = folder.joinpath(*parts[4:])
            if not path.is_file():
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
            return self.send_file(path, body, commit)

        def find(self, name: str, revision: str) -> tuple[Path, str] | None:
            if revision in ("", "main", COMMIT):
                return hub.repositories[name], COMMIT
            for key, folder in hub.repositories.items():
                if key.startswith(f"{name}@") and revision in (key.partition("@")[2], commit_of(key)):
                    return folder, commit_of(key)
            return None

        def info(self, name: str, folder: Path, commit: str) -> dict:
            siblings = [
                {
                    "rfilename": path.relative_to(folder).as_posix(),
                    "size": path.stat().st_size,
                    "blobId": digest(path)[:40],
                }
                | (
                    {"lfs": {"sha256": digest(path), "size": path.stat().st_size, "pointerSize": 1}}
                    if heavy(path)
                    else {}
                )
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            ]
            return {"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}

        def send_file(self, path: Path, body: bool, commit: str) -> None:
            data = path.read_bytes()
            headers = {"ETag": f'"{digest(path)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            asked = self.headers.get("Range")
            status, start = 200, 0
            if asked and hub.ranges:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, stop = int(first), int(last or len(data) - 1) + 1
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
                status, data = 206, data[start:stop]
            broken = False
            if body and heavy(path):
                broken = hub.fail_after is not None and len(hub.reads) >= hub.fail_after
                hub.reads.append((path.name, start, len(data) // 2 if broken else len(data)))
            self.send(status, data, headers, body, broken)

        def send(self, status: int, data: bytes, headers: dict, body: bool, broken: bool = False) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data[: len(data) // 2] if broken else data)
            if broken:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


@contextmanager
def running_hub(cache: Path, monkeypatch) -> Iterator[Hub]:
    """A hub that huggingface_hub takes for its own, with a cache of its own."""
    from huggingface_hub import constants

    hub = Hub()
    server = serve(hub)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(cache / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def commit_of(key: str) -> str:
    """Commit of a ``name@revision``."""
    return hashlib.sha1(key.encode()).hexdigest()


def heavy(path: Path) -> bool:
    return path.suffix in (".safetensors", ".bin", ".jsonl", ".parquet")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
