"""The download, against a loopback server that speaks Dataverse's native API."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import signal
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

from mlops_project.data.archives import read_bytes
from mlops_project.data.download import download
from mlops_project.data.sources import SYNTHETIC_MARKER, read_source
from mlops_project.errors import InputError, ProjectError

PART_1, PART_2 = "HAM10000_images_part_1.zip", "HAM10000_images_part_2.zip"
TABLE = "HAM10000_metadata.csv"
TEST_IMAGES = "ISIC2018_Task3_Test_Images.zip"
TEST_TABLE = "ISIC2018_Task3_Test_GroundTruth.csv"
HALF = 200_000  # bytes before a cut, many of the client's chunks


class Dataverse(ThreadingHTTPServer):
    """Files by name; `faults` holds, for each name, what goes wrong with its next requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: dict[str, bytes] = {}
        self.entries: dict[str, dict] = {}
        self.version: dict = {"license": {"name": "CC BY-NC 4.0", "uri": "http://licence.example"}}
        self.faults: dict[str, list[str]] = {}
        self.listing_fault = ""
        self.seen: list[tuple[str, str]] = []  # (name, Range header) of each request for a file
        self.listings = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name: str, body: bytes, **facts: object) -> None:
        """A file, with facts of its listing replaced; None leaves one out."""
        self.bodies[name] = body
        digest = hashlib.md5(body).hexdigest()
        entry = {"id": len(self.bodies), "filename": name, "filesize": len(body), "md5": digest}
        self.entries[name] = {k: v for k, v in {**entry, **facts}.items() if v is not None}

    def ranges(self, name: str) -> list[str]:
        return [header for requested, header in self.seen if requested == name]


class Handler(BaseHTTPRequestHandler):
    server: Dataverse

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/api/datasets/:persistentId/":
            self.server.listings += 1
            self.send_listing(parse_qs(url.query)["persistentId"])
            return
        number = int(url.path.removeprefix("/api/access/datafile/"))
        name = next(n for n, e in self.server.entries.items() if e["id"] == number)
        entry = self.server.entries[name]
        body = self.server.bodies[name]
        if "originalFileFormat" in entry and url.query != "format=original":
            body = converted(body)
        header = self.headers.get("Range", "")
        self.server.seen.append((name, header))
        faults = self.server.faults.get(name, [])
        self.send_file(body, header, faults.pop(0) if faults else "")

    def send_listing(self, doi: list[str]) -> None:
        fault = self.server.listing_fault
        if fault in ("404", "500"):
            self.send_error(int(fault))
            return
        assert doi == ["doi:10.7910/DVN/DBW86T"]
        files = [{"label": e["filename"], "dataFile": e} for e in self.server.entries.values()]
        listing = {
            "status": "OK",
            "data": {"latestVersion": {**self.server.version, "files": files}},
        }
        body = fault.encode() or json.dumps(listing).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, body: bytes, header: str, fault: str) -> None:
        if fault == "interrupt":  # Ctrl-C, while the client waits for this answer
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)
            return
        if fault.isdigit():
            self.send_error(int(fault))
            return
        if fault == "wrong":
            body = body[:-1] + bytes([body[-1] ^ 1])
        start = int(header.removeprefix("bytes=").removesuffix("-") or 0)
        if fault == "ignore range":
            start = 0
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            shown = 0 if fault == "other range" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Type", "text/html" if fault == "html" else "application/zip")
        if fault != "cut without length":
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + HALF if fault.startswith("cut") else len(body)
        self.wfile.write(body[start:end])


def converted(body: bytes) -> bytes:
    """As Dataverse does with an ingested table: tab-separated, with texts in quotes."""
    rows = [line.split(",") for line in body.decode().splitlines()]
    return "\n".join("\t".join(f'"{cell}"' for cell in row) for row in rows).encode()


def images(first: int, count: int = 4) -> bytes:
    """A zip archive of noisy JPEG images, about 500 kB."""
    noise = np.random.default_rng(first)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(first, first + count):
            picture = io.BytesIO()
            pixels = noise.integers(0, 256, (256, 256, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(picture, "JPEG", quality=95)
            file.writestr(f"ISIC_{number:07d}.jpg", picture.getvalue())
    return archive.getvalue()


def table(first: int, count: int) -> bytes:
    lines = ["lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"]
    for number in range(first, first + count):
        lines.append(f"HAM_{number:07d},ISIC_{number:07d},nv,histo,45.0,male,back,vidir_modern")
    return ("\n".join(lines) + "\n").encode()


@pytest.fixture(scope="module")
def bodies() -> dict[str, bytes]:
    return {
        PART_1: images(1),
        PART_2: images(5),
        TABLE: table(1, 8),
        TEST_IMAGES: images(101),
        TEST_TABLE: table(101, 4),
    }


@pytest.fixture
def server(bodies: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Dataverse]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Dataverse()
    for name, body in bodies.items():
        if name.endswith(".zip"):
            server.add(name, body)
        else:
            ingest(server, name, body)
    server.add("HAM10000_segmentations_lesion_tschandl.zip", b"not needed")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ingest(server: Dataverse, name: str, body: bytes, **facts: object) -> None:
    original = {"originalFileFormat": "text/csv", "originalFileSize": len(body)}
    original |= {"filename": name.replace(".csv", ".tab"), "filesize": len(converted(body))}
    server.add(name, body, **(original | facts))


@pytest.fixture
def messages() -> Iterator[list[str]]:
    lines: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    keeper, log = Keeper(), logging.getLogger("mlops_project")
    level = log.level
    log.addHandler(keeper)
    log.setLevel(logging.INFO)
    yield lines
    log.removeHandler(keeper)
    log.setLevel(level)


def fetch(server: Dataverse, folder: Path, test: bool = False) -> list[Path]:
    return download(folder, test=test, server=server.address, backoff=0)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if not p.name.startswith(".")}


def test_what_arrives_is_a_source(server: Dataverse, tmp_path: Path, messages: list[str]) -> None:
    folder = tmp_path / "data" / "ham10000"
    paths = fetch(server, folder)

    assert paths == [folder / PART_1, folder / PART_2, folder / TABLE]
    assert names(folder) == {PART_1, PART_2, TABLE}
    assert names(folder.parent) == {"ham10000"}
    for path in paths:
        assert path.read_bytes() == server.bodies[path.name]
    source = read_source(folder)
    assert (source.layout, len(source.table), source.missing) == ("dataverse", 8, ())
    row = source.table.iloc[-1]
    assert Image.open(io.BytesIO(read_bytes(row["path"], row["member"]))).size == (256, 256)
    licence = next(i for i, line in enumerate(messages) if "CC BY-NC 4.0" in line)
    assert licence < next(i for i, line in enumerate(messages) if "fetching" in line)


@pytest.mark.parametrize("name", ["ham10000", "ham10000_test"])
def test_real_images_are_not_put_beside_synthetic_ones(
    name: str, server: Dataverse, tmp_path: Path
) -> None:
    """A marker says of the whole folder that a program made its images."""
    (tmp_path / name).mkdir()
    (tmp_path / name / SYNTHETIC_MARKER).write_text("{}")
    with pytest.raises(InputError, match=f"{name}: holds synthetic images"):
        fetch(server, tmp_path / "ham10000", test=True)
    assert names(tmp_path) == {name}
    assert server.listings == 0


def test_environment_names_the_server(
    server: Dataverse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAVERSE_SERVER", server.address + "/")
    assert len(download(tmp_path)) == 3


@pytest.mark.parametrize(
    ("version", "shown"),
    [
        ({"license": {"name": "CC0 1.0", "uri": "http://c"}}, "CC0 1.0 http://c"),
        (
            {"license": "NONE", "termsOfUse": "<p>For research\n only\x1b[2J</p>"},
            "For research only",
        ),
        ({}, "CC BY-NC 4.0"),
    ],
)
def test_licence_is_that_of_the_listing(
    server: Dataverse, tmp_path: Path, messages: list[str], version: dict, shown: str
) -> None:
    server.version = version
    fetch(server, tmp_path)
    text = "\n".join(messages)
    assert f"Licence: {shown}" in text
    assert "\x1b" not in text


def test_complete_files_are_not_fetched_again(
    server: Dataverse, tmp_path: Path, messages: list[str]
) -> None:
    paths = fetch(server, tmp_path)
    server.seen.clear()
    assert fetch(server, tmp_path) == paths
    assert server.seen == []
    assert sum("already there" in line for line in messages) == 3


def test_table_without_ending_counts_as_there(server: Dataverse, tmp_path: Path) -> None:
    (tmp_path / "HAM10000_metadata").write_bytes(server.bodies[TABLE])
    assert fetch(server, tmp_path)[2] == tmp_path / "HAM10000_metadata"
    assert names(tmp_path) == {PART_1, PART_2, "HAM10000_metadata"}


@pytest.mark.parametrize("fault", ["cut", "cut without length"])
def test_cut_connection_is_resumed(server: Dataverse, tmp_path: Path, fault: str) -> None:
    server.faults[PART_1] = [fault]
    fetch(server, tmp_path)
    first, second = server.ranges(PART_1)
    assert first == ""
    resumed_at = int(second.removeprefix("bytes=").removesuffix("-"))
    assert 0 < resumed_at <= HALF
    assert (tmp_path / PART_1).read_bytes() == server.bodies[PART_1]


def test_after_giving_up_the_same_call_goes_on(server: Dataverse, tmp_path: Path) -> None:
    server.faults[PART_1] = ["cut"] + ["503"] * 10
    with pytest.raises(ProjectError, match=r"503(.|\n)*same command continues"):
        fetch(server, tmp_path)
    arrived = (tmp_path / f"{PART_1}.part").stat().st_size
    assert arrived > 0
    assert not (tmp_path / PART_1).exists()

    server.faults.clear()
    server.seen.clear()
    fetch(server, tmp_path)
    assert server.ranges(PART_1) == [f"bytes={arrived}-"]
    assert (tmp_path / PART_1).read_bytes() == server.bodies[PART_1]
    assert names(tmp_path) == {PART_1, PART_2, TABLE}


def test_interrupt_leaves_what_has_arrived(server: Dataverse, tmp_path: Path) -> None:
    server.faults[PART_1] = ["cut", "interrupt"]
    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path)
    arrived = (tmp_path / f"{PART_1}.part").stat().st_size
    fetch(server, tmp_path)
    assert server.ranges(PART_1)[-1] == f"bytes={arrived}-"
    assert (tmp_path / PART_1).read_bytes() == server.bodies[PART_1]


@pytest.mark.parametrize(
    ("fault", "requests"),
    [
        ("ignore range", ["bytes=1000-"]),
        ("other range", ["bytes=1000-", ""]),
        ("416", ["bytes=1000-", ""]),
    ],
)
def test_server_that_cannot_resume(
    server: Dataverse, tmp_path: Path, fault: str, requests: list[str]
) -> None:
    (tmp_path / f"{PART_1}.part").write_bytes(server.bodies[PART_1][:1000])
    server.faults[PART_1] = [fault]
    fetch(server, tmp_path)
    assert server.ranges(PART_1) == requests
    assert (tmp_path / PART_1).read_bytes() == server.bodies[PART_1]


def test_whole_part_file_needs_no_request(server: Dataverse, tmp_path: Path) -> None:
    (tmp_path / f"{PART_1}.part").write_bytes(server.bodies[PART_1])
    fetch(server, tmp_path)
    assert server.ranges(PART_1) == []
    assert (tmp_path / PART_1).read_bytes() == server.bodies[PART_1]


@pytest.mark.parametrize("left", [b"of another file", b"x" * 2_000_000])
def test_foreign_part_file_is_replaced(server: Dataverse, tmp_path: Path, left: bytes) -> None:
    (tmp_path / f"{PART_1}.part").write_bytes(left)
    fetch(server, tmp_path)
    assert (tmp_path / PART_1).read_bytes() == server.bodies[PART_1]


@pytest.mark.parametrize("name", [PART_2, TABLE])
def test_one_damaged_transfer_is_repeated(server: Dataverse, tmp_path: Path, name: str) -> None:
    server.faults[name] = ["wrong"]
    fetch(server, tmp_path)
    assert (tmp_path / name).read_bytes() == server.bodies[name]


def test_wrong_checksum_is_refused(server: Dataverse, tmp_path: Path) -> None:
    server.faults[PART_2] = ["wrong", "wrong", "wrong"]
    with pytest.raises(ProjectError, match=f"{PART_2}.*wrong checksum"):
        fetch(server, tmp_path)
    assert len(server.ranges(PART_2)) == 2
    assert names(tmp_path) == {PART_1}


@pytest.mark.parametrize("algorithm", ["SHA-1", "SHA-256", "SHA-512"])
def test_other_checksums(server: Dataverse, tmp_path: Path, algorithm: str) -> None:
    body = server.bodies[PART_1]
    value = hashlib.new(algorithm.replace("-", ""), body).hexdigest().upper()
    server.add(PART_1, body, id=77, md5=None, checksum={"type": algorithm, "value": value})
    assert (fetch(server, tmp_path)[0]).read_bytes() == body


def test_listed_checksum_of_the_converted_table(
    server: Dataverse, tmp_path: Path, messages: list[str]
) -> None:
    body = server.bodies[TABLE]
    ingest(server, TABLE, body, id=77, md5=hashlib.md5(converted(body)).hexdigest())
    fetch(server, tmp_path)
    assert (tmp_path / TABLE).read_bytes() == body
    assert any("another form" in line for line in messages)


@pytest.mark.parametrize("size", [None, 1, 10_000])
def test_table_with_neither_checksum_nor_size(
    server: Dataverse, tmp_path: Path, size: int | None
) -> None:
    ingest(server, TABLE, server.bodies[TABLE], id=77, md5="0" * 32, originalFileSize=size)
    with pytest.raises(ProjectError, match="HAM10000_metadata"):
        fetch(server, tmp_path)
    assert TABLE not in names(tmp_path)


def test_ingested_table_without_listed_size(server: Dataverse, tmp_path: Path) -> None:
    ingest(server, TABLE, server.bodies[TABLE], id=77, originalFileSize=None)
    fetch(server, tmp_path)
    assert (tmp_path / TABLE).read_bytes() == server.bodies[TABLE]


def test_tab_separated_table_keeps_its_ending(server: Dataverse, tmp_path: Path) -> None:
    server.add(TABLE, converted(server.bodies[TABLE]), id=77, filename="HAM10000_metadata.tab")
    paths = fetch(server, tmp_path)
    assert paths[2] == tmp_path / "HAM10000_metadata.tab"
    assert len(read_source(tmp_path).table) == 8
    server.seen.clear()
    assert fetch(server, tmp_path) == paths
    assert server.seen == []


def test_official_test_set_lies_apart(server: Dataverse, tmp_path: Path) -> None:
    folder = tmp_path / "ham10000"
    paths = fetch(server, folder, test=True)
    beside = tmp_path / "ham10000_test"
    assert paths[3:] == [beside / TEST_IMAGES, beside / TEST_TABLE]
    assert names(folder) == {PART_1, PART_2, TABLE}
    assert names(beside) == {TEST_IMAGES, TEST_TABLE}
    training, test = (set(read_source(f).table["image_id"]) for f in (folder, beside))
    assert (len(training), len(test), training & test) == (8, 4, set())


def test_what_else_lies_there_is_kept(server: Dataverse, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "HAM10000_metadata").write_text("image_id,dx\nISIC_0000001,mel\n")
    (tmp_path / "HAM10000_metadata.tab").write_text("not read beside a .csv")
    (tmp_path / PART_1).write_bytes(server.bodies[PART_1][:1000])
    fetch(server, tmp_path)
    assert (tmp_path / "HAM10000_metadata.tab").read_text() == "not read beside a .csv"
    old = {p.name.split(".2")[0]: p.read_bytes() for p in tmp_path.glob("*.old")}
    assert old == {
        "HAM10000_metadata": b"image_id,dx\nISIC_0000001,mel\n",
        PART_1: server.bodies[PART_1][:1000],
    }
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert set(read_source(tmp_path).table["dx"]) == {"nv"}


def archive_with(name: str, content: bytes = b"x", mode: int = stat.S_IFREG | 0o644) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        # Not compressible, so that the archive as a whole does not look like a bomb.
        file.writestr("ISIC_0000001.jpg", np.random.default_rng(0).bytes(300_000))
        member = zipfile.ZipInfo("placeholder")
        member.filename = name  # the constructor would change some of them
        member.external_attr = mode << 16
        file.writestr(member, content, zipfile.ZIP_DEFLATED)
    return archive.getvalue()


UNSAFE = {
    "absolute": archive_with("/etc/evil.jpg"),
    "parent": archive_with("images/../../evil.jpg"),
    "backslashes": archive_with("images\\..\\..\\evil.jpg"),
    "drive": archive_with("C:evil.jpg"),
    "symlink": archive_with("link.jpg", b"/etc/passwd", stat.S_IFLNK | 0o777),
    "bomb": archive_with("ISIC_0000002.jpg", bytes(20_000_000)),
    "no archive": b"PK but nothing more",
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_unsafe_archive_is_refused(server: Dataverse, tmp_path: Path, kind: str) -> None:
    server.add(PART_2, UNSAFE[kind], id=77)
    with pytest.raises(ProjectError, match=f"{PART_2}: refused"):
        fetch(server, tmp_path)
    assert names(tmp_path) == {PART_1}


def test_bomb_of_many_harmless_members_is_refused(server: Dataverse, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(20):
            file.writestr(f"ISIC_{number:07d}.jpg", bytes(1_000_000))
    server.add(PART_2, archive.getvalue(), id=77)
    with pytest.raises(ProjectError, match="all members together"):
        fetch(server, tmp_path)


@pytest.mark.parametrize("name", ["../HAM10000_metadata.csv", "/tmp/x/HAM10000_metadata.csv"])
def test_listed_names_never_lead_out_of_the_folder(
    server: Dataverse, tmp_path: Path, name: str
) -> None:
    server.entries[TABLE]["filename"] = name
    with pytest.raises(ProjectError, match=r"HAM10000_metadata is missing"):
        fetch(server, tmp_path / "ham10000")
    assert not (tmp_path / "HAM10000_metadata.csv").exists()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("404", "answers 404"),
        ("500", "answers 500"),
        ("<html>Log in to this network</html>", "not the listing"),
        ('{"status": "OK", "data": []}', "not the listing"),
        ('{"data": {"latestVersion": {"files": []}}}', "is missing in the listing"),
    ],
)
def test_bad_listing(server: Dataverse, tmp_path: Path, fault: str, expected: str) -> None:
    server.listing_fault = fault
    with pytest.raises(ProjectError, match=expected):
        fetch(server, tmp_path / "ham10000")
    assert not (tmp_path / "ham10000").exists()


@pytest.mark.parametrize(
    "facts",
    [
        {"md5": None},
        {"filesize": None},
        {"id": "../1"},
        {"checksum": {"type": "CRC", "value": "1"}},
    ],
)
def test_listing_that_lacks_facts(server: Dataverse, tmp_path: Path, facts: dict) -> None:
    server.add(PART_1, server.bodies[PART_1], **facts)
    with pytest.raises(ProjectError, match="lacks a usable id, size or checksum"):
        fetch(server, tmp_path)


@pytest.mark.parametrize("fault", ["404", "403", "html"])
def test_file_that_is_refused_is_asked_for_once(
    server: Dataverse, tmp_path: Path, fault: str
) -> None:
    server.faults[PART_1] = [fault]
    with pytest.raises(ProjectError, match=f"{PART_1}: the server answers .*html"):
        fetch(server, tmp_path)
    assert len(server.ranges(PART_1)) == 1
    assert names(tmp_path) == set()


def test_server_that_is_not_there(server: Dataverse, tmp_path: Path) -> None:
    gone = Dataverse()
    gone.server_close()
    with pytest.raises(ProjectError, match=r"no connection: .*refused(.|\n)*Check the network"):
        download(tmp_path / "ham10000", server=gone.address)
    assert not (tmp_path / "ham10000").exists()


@pytest.mark.parametrize("address", ["ftp://host", "file:///etc/passwd", "host.example", ""])
def test_address_that_is_none(tmp_path: Path, address: str) -> None:
    with pytest.raises(InputError, match="not the address of a server"):
        download(tmp_path, server=address)


def test_room_is_checked_before_anything_is_fetched(server: Dataverse, tmp_path: Path) -> None:
    size = shutil.disk_usage(tmp_path).total
    server.add(PART_2, server.bodies[PART_2], id=77, filesize=size)
    with pytest.raises(ProjectError, match=r"are needed(.|\n)*Make room"):
        fetch(server, tmp_path)
    assert server.seen == []


def test_folder_that_cannot_be_made(server: Dataverse, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ProjectError, match=r"move it away(.|\n)*another folder"):
        fetch(server, tmp_path / "file" / "ham10000")


def test_folder_that_may_not_be_written_to(server: Dataverse, tmp_path: Path) -> None:
    """What helps is another folder, and no room."""
    program = f"""
import ctypes, os, pathlib
from mlops_project.data.download import download
from mlops_project.errors import ProjectError
folder = pathlib.Path({str(tmp_path)!r})
if os.geteuid() == 0:  # root writes into read-only folders, until it gives up its capabilities
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capset(header, none)
if os.access(folder, os.W_OK):
    print("may be written to")
try:
    download(folder / "ham10000", server={server.address!r})
except ProjectError as error:
    print(error)
"""
    tmp_path.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    tmp_path.chmod(0o755)
    if "may be written to" in done.stdout:
        pytest.skip("no folder is read-only for this user on this system")
    problem, remedy = done.stdout.splitlines()
    assert problem.startswith(f"{tmp_path / 'ham10000'}: no permission")
    assert "another folder" in remedy
    assert "room" not in remedy


def test_full_disk_keeps_what_has_arrived(server: Dataverse, tmp_path: Path) -> None:
    program = f"""
import resource, pathlib
from mlops_project.data.download import download
from mlops_project.errors import ProjectError
resource.setrlimit(resource.RLIMIT_FSIZE, ({HALF}, {HALF}))
try:
    download(pathlib.Path({str(tmp_path)!r}), server={server.address!r})
except ProjectError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    problem, remedy = done.stdout.splitlines()
    assert problem == (
        f"{tmp_path}: the disk allows no larger files: choose another one (File too large)"
    )
    assert "What has arrived is kept" in remedy
    assert 0 < (tmp_path / f"{PART_1}.part").stat().st_size <= HALF
    fetch(server, tmp_path)
    assert (tmp_path / PART_1).read_bytes() == server.bodies[PART_1]


def test_two_downloads_at_once_fetch_each_file_once(server: Dataverse, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: fetch(server, tmp_path), range(2))
    assert first == second
    assert server.listings == 2
    assert sorted(name for name, _ in server.seen) == [PART_1, PART_2, TABLE]
