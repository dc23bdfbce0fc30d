"""What a server may answer to a download: listings that lie, files that are none, no end."""

from __future__ import annotations

import hashlib
import json
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from mlops_project.data.download import TRAINING, download
from tests.fuzz import archives
from tests.fuzz.damage import Step, damage, some_steps

ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 3, 1.5, 2**31, 2**63, 10**30, "", "x", "../../outside", "1", [], {}, [[]]),
    *("9" * 5000, {"a": 1}, "\x1b[2J\n", "NaN", float("nan"), float("inf"), "é", "SHA-512"),
)
OF_LISTING = (
    "data",
    "latestVersion",
    "files",
    "license",
    "termsOfUse",
    "filename",
    "filesize",
    "md5",
)
OF_FILE = ("id", "checksum", "originalFileFormat", "originalFileSize", "dataFile", "type", "value")
odd = st.sampled_from(ODD) | st.text(max_size=10)


class Input(NamedTuple):
    """Entries of the listing that are replaced, damage to it, and how each file is answered."""

    replaced: dict[str, Any]
    changes: list[Step]
    archive: archives.Input | None
    answers: list[str]  # to each request in turn
    status: int


HOW = (
    "",
    "",
    "",
    "cut",
    "more",
    "html",
    "500",
    "404",
    "302",
    "416",
    "206",
    "gzip",
    "header",
    "none",
)
inputs = st.builds(
    Input,
    st.dictionaries(st.sampled_from(OF_LISTING + OF_FILE), odd, max_size=2),
    st.integers(0, 3).flatmap(lambda n: some_steps if n == 0 else st.just([])),
    st.none() | archives.inputs,
    st.lists(st.sampled_from(HOW), max_size=4),
    st.sampled_from((*[200] * 12, 204, 302, 401, 500, 999)),
)


class Server(ThreadingHTTPServer):
    """Answers as the input of the moment says."""

    daemon_threads = True
    value: Input
    bodies: dict[str, bytes]
    answers: list[str]

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that has had enough


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        value = self.server.value
        if "persistentId" in self.path:
            body = damage(json.dumps(listing(self.server)).encode(), value.changes)
            self.answer(value.status, body)
            return
        number = self.path.partition("/datafile/")[2].partition("?")[0]
        position = int(number) - 1 if number.isdigit() else 0
        body = self.server.bodies[TRAINING[position % 3]]
        how = self.server.answers.pop(0) if self.server.answers else ""
        if how == "cut":
            self.answer(200, body[: len(body) // 2], {"Content-Length": str(len(body))})
        elif how == "more":
            self.answer(200, body + bytes(2**20))
        elif how == "html":
            self.answer(200, b"<html>", {"Content-Type": "text/html"})
        elif how == "302":
            self.answer(302, b"", {"Location": "file:///etc/passwd"})
        elif how == "206":
            self.answer(206, body, {"Content-Range": "bytes 7-x/*"})
        elif how == "gzip":
            self.answer(200, body, {"Content-Encoding": "gzip"})
        elif how == "header":
            self.answer(200, body, {"X": "y" * 70_000})
        elif how == "none":
            self.wfile.write(b"\0\xff")
        else:
            self.answer(int(how or 200), body)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = headers or {}
        if status == 302 and "Location" not in headers:
            headers["Location"] = self.path  # to itself, for ever
        for name, text in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)


def listing(server: Server) -> Any:
    """As Dataverse's native API writes it, with the replaced entries."""
    files = []
    for number, (name, body) in enumerate(server.bodies.items(), 1):
        checksum = {"type": "MD5", "value": hashlib.md5(body).hexdigest()}
        facts = {"id": number, "filename": name, "filesize": len(body), "checksum": checksum}
        files.append({"dataFile": {**facts, "md5": checksum["value"]}})
    whole = {"data": {"latestVersion": {"license": {"name": "CC"}, "files": files}}}
    return replace(whole, server.value.replaced)


def replace(node: Any, replaced: dict[str, Any]) -> Any:
    if isinstance(node, dict):
        added = {k: v for k, v in replaced.items() if k not in node and "filename" in node}
        return {k: replaced.get(k, replace(v, replaced)) for k, v in node.items()} | added
    return [replace(v, replaced) for v in node] if isinstance(node, list) else node


@cache
def server() -> Server:
    made = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    return made


def build(value: Input, folder: Path) -> None:
    image = archives.Member(archives.NAMES[0], "image", 0, 0)
    good = archives.archive_bytes(archives.Input([image], "images", [], 0, [], False))
    bad = archives.archive_bytes(value.archive) if value.archive else good
    table = b"image_id,lesion_id,dx\nISIC_0000001,L1,mel\n"
    server().value, server().answers = value, list(value.answers)
    server().bodies = dict(zip(TRAINING, (bad, good, table), strict=True))


def use(value: Input, folder: Path) -> None:
    """Downloads what the server has."""
    address = f"http://127.0.0.1:{server().server_address[1]}"
    download(folder / "ham10000", server=address, backoff=0)
