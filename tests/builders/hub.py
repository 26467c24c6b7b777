"""The few requests of a dataset hub that downloading takes, answered from folders on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

COMMIT = "c0ffee" + "0" * 34


def listing(files: Mapping[str, Path]) -> list[dict]:
    """What the hub says of files; those that there are not are left out."""
    return [
        {"type": "file", "path": where, "size": file.stat().st_size, "oid": "0" * 40}
        for where, file in files.items()
        if file.is_file()
    ]


@contextmanager
def hub(repositories: Mapping[str, Path]) -> Iterator[str]:
    """Serve folders as dataset repositories (id -> folder); yields the address for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path.removeprefix("/api")
            for name, folder in repositories.items():
                if path.startswith(f"/datasets/{name}"):
                    return self.repository(name, folder, path.removeprefix(f"/datasets/{name}").strip("/").split("/"))
            return self.reply(404, b"", "RepoNotFound")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            """`paths-info`: which of the paths asked for there are."""
            asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()).get("paths", [])
            path = urlsplit(self.path).path.removeprefix("/api/datasets/")
            folder = next(folder for name, folder in repositories.items() if path.startswith(name))
            self.reply(200, json.dumps(listing({where: folder / where for where in asked})).encode())

        def repository(self, name: str, folder: Path, path: list[str]) -> None:
            files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
            if path[0] == "resolve":
                wanted = "/".join(path[2:])
                if wanted not in files:
                    return self.reply(404, b"", "EntryNotFound")
                return self.reply(200, files[wanted].read_bytes())
            if path[0] == "tree":
                below = "/".join(path[2:])
                found = listing({where: file for where, file in files.items() if where.startswith(below)})
                return self.reply(200, json.dumps(found).encode()) if found else self.reply(404, b"", "EntryNotFound")
            siblings = [{"rfilename": where} for where in files]
            return self.reply(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings, "tags": []}).encode())

        def reply(self, status: int, body: bytes, error: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if error:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
