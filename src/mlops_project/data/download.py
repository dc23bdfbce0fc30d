"""Fetches HAM10000 from a Dataverse, and goes on where an earlier download stopped.

The server's listing names the files with their sizes and checksums. A file is written as
`<name>.part` and takes its name only when its checksum and, for an archive, its members are right.
Only names of this module become names on the disk, never one that the server sends.
"""

from __future__ import annotations

import filecmp
import hashlib
import logging
import os
import re
import shutil
import stat
import textwrap
import time
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from filelock import FileLock, Timeout
from rich.console import Console
from rich.filesize import decimal
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from mlops_project.data.archives import DAMAGED
from mlops_project.data.tables import MAX_TABLE_BYTES, TABLE_ENDINGS
from mlops_project.errors import InputError, ProjectError, file_failure
from mlops_project.printable import printable

log = logging.getLogger("mlops_project")

DOI = "doi:10.7910/DVN/DBW86T"
HARVARD = "https://dataverse.harvard.edu"
LICENCE = "CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/)"
# The table comes last: until the images are complete, the folder is not taken for a data set.
TRAINING = ("HAM10000_images_part_1.zip", "HAM10000_images_part_2.zip", "HAM10000_metadata.csv")
TEST = ("ISIC2018_Task3_Test_Images.zip", "ISIC2018_Task3_Test_GroundTruth.csv")

TIMEOUT = (15, 60)  # seconds to connect, and between two arrivals
RETRIES = 4  # after connections in a row that were cut before they brought ENOUGH_BYTES
ENOUGH_BYTES = 2**20
BACKOFF_SECONDS = 1.0  # before the first retry; doubles with each
BUSY = (408, 429, 500, 502, 503, 504)  # answers that another attempt may better
SPARE_BYTES = 100 * 2**20  # stay free on the disk
MAX_RATIO = 100  # unpacked to packed: photographs hardly shrink, a zip bomb does by 1000
HARMLESS_BYTES = 2**20  # of a member, at any ratio
HASHES = {"MD5": "md5", "SHA-1": "sha1", "SHA-256": "sha256", "SHA-512": "sha512"}


@dataclass(frozen=True)
class _File:
    target: Path  # a table's ending is .tab instead if its text is tab-separated
    part: Path
    url: str
    size: int | None  # bytes; None: the server does not say
    algorithm: str  # of hashlib
    checksum: str  # hexadecimal
    ingested: bool  # a table that the server has converted, fetched as it was uploaded


class _Cut(Exception):
    """A connection brought less than the whole file; another one may bring the rest."""


def download(
    folder: Path, *, test: bool = False, server: str = HARVARD, backoff: float = BACKOFF_SECONDS
) -> list[Path]:
    """Fetches what is lacking of HAM10000 (CC BY-NC 4.0, doi 10.7910/DVN/DBW86T).

    Files with the right checksum stay as they are; a file of the same name with other contents is
    kept as `<name>.<time>.old`. Processes that download into one folder wait for each other.

    An ingested table is fetched as it was uploaded, but its listed checksum may be that of the
    converted table. So where two transfers agree with each other and with the original's listed
    size, but not with the checksum, the table is kept with a warning.

    Args:
        folder: for the training images and their table; made if there is none.
        test: also fetch the official test set (ISIC 2018, task 3), into `<folder>_test`.
        server: http(s) address; the environment's DATAVERSE_SERVER takes the default's place.
        backoff: seconds before the first retry of a cut connection; doubles with each.

    Returns:
        The files, absolute paths.

    Raises:
        InputError: `server` is no http(s) address.
        ProjectError: no connection, no room, no permission, an answer that is none, a file that is
            missing, damaged or unsafe. What has arrived is kept for the next call.
    """
    folder = Path(os.path.abspath(folder))
    server = (server == HARVARD and os.environ.get("DATAVERSE_SERVER")) or server
    if not re.match(r"https?://[^/\s]", server):
        raise InputError(f"{server}: not the address of a server; one looks like {HARVARD}")
    targets = [folder / name for name in TRAINING]
    targets += [folder.parent / f"{folder.name}_test" / name for name in TEST if test]
    try:
        with ExitStack() as stack:
            session = stack.enter_context(requests.Session())
            files = _list_files(session, server.rstrip("/"), targets)
            for target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".download.lock")
            try:
                stack.enter_context(lock.acquire(timeout=0.1))
            except Timeout:
                log.info("%s: another process is downloading: waiting for it", folder)
                stack.enter_context(lock)
            found = [(file, _find(file)) for file in files]
            _check_room([file for file, path in found if path is None])
            return [path or _fetch(session, file, backoff) for file, path in found]
    except requests.RequestException as error:
        message = f"{server}: {_reason(error)}\nCheck the network and run the same command again."
        raise ProjectError(message) from error
    except OSError as error:
        if not error.filename:
            error.filename = folder  # a write does not tell where it failed
        raise ProjectError(
            f"{file_failure(error) or f'{error.filename}: {error.strerror or error}'}\n"
            "`dataset.py download DIR` takes another folder. What has arrived is kept."
        ) from error


def _list_files(session: requests.Session, server: str, targets: list[Path]) -> list[_File]:
    url = f"{server}/api/datasets/:persistentId/"
    answer = session.get(url, params={"persistentId": DOI}, timeout=TIMEOUT)
    if answer.status_code != 200:
        raise _refused(f"{server}: {DOI}", answer)
    try:
        version = answer.json()["data"]["latestVersion"]
        listed = {f["dataFile"]["filename"].lower(): f["dataFile"] for f in version["files"]}
        licence = _licence(version)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProjectError(
            f"{server}: the answer is not the listing of a data set\n"
            "Is DATAVERSE_SERVER right, and no login page of the network in between?"
        ) from error
    log.info("HAM10000 (%s) from %s\nLicence: %s", DOI, server, licence)
    return [_describe(server, target, listed) for target in targets]


def _licence(version: dict[str, Any]) -> str:
    text = version.get("license") or ""
    if isinstance(text, dict):
        text = f"{text.get('name', '')} {text.get('uri', '')}"
    if text.strip().upper() in ("", "NONE"):
        text = re.sub(r"<[^>]*>", " ", version.get("termsOfUse") or "")
    printable = "".join(c if c.isprintable() else " " for c in text)
    return textwrap.shorten(printable, 300, placeholder=" …") or LICENCE


def _describe(server: str, target: Path, listed: dict[str, dict[str, Any]]) -> _File:
    entry = next((listed[p.name.lower()] for p in _names(target) if p.name.lower() in listed), None)
    if entry is None:
        raise ProjectError(f"{server}: {target.stem} is missing in the listing of {DOI}")
    ingested = "originalFileFormat" in entry or "originalFileName" in entry
    try:
        checksum = entry.get("checksum") or {"type": "MD5", "value": entry["md5"]}
        return _File(
            target,
            target.with_name(f"{target.name}.part"),
            f"{server}/api/access/datafile/{int(entry['id'])}" + "?format=original" * ingested,
            int(entry.get("originalFileSize", 0) if ingested else entry["filesize"]) or None,
            HASHES[checksum["type"]],
            checksum["value"].lower(),
            ingested,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        message = f"{server}: the listing lacks a usable id, size or checksum of {target.stem}"
        raise ProjectError(message) from error


def _names(target: Path) -> list[Path]:
    """The names a file may lie under, in the order in which `sources` prefers them."""
    endings = (".zip",) if target.suffix == ".zip" else TABLE_ENDINGS
    return sorted(target.with_suffix(ending) for ending in endings)


def _find(file: _File) -> Path | None:
    """Where the file lies already, with the right checksum."""
    for path in _names(file.target):
        if path.is_file() and _checksum(path, file.algorithm) == file.checksum:
            _check_archive(path)
            log.info("%s: already there, with the right checksum", path.name)
            return path
    return None


def _checksum(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        new = hashlib.new(algorithm, usedforsecurity=False)
        return hashlib.file_digest(file, lambda: new).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_room(files: list[_File]) -> None:
    needed = SPARE_BYTES + sum(max(0, (file.size or 0) - _size(file.part)) for file in files)
    for folder in {file.target.parent for file in files}:
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise ProjectError(
                f"{folder}: {decimal(needed)} of room are needed, {decimal(free)} are free\n"
                "Make room or name a folder on another disk."
            )


def _fetch(session: requests.Session, file: _File, backoff: float) -> Path:
    name, before = file.target.name, ""
    for _ in range(2):
        _transfer(session, file, backoff)
        found = _checksum(file.part, file.algorithm)
        unchanged = file.ingested and found == before and _size(file.part) == file.size
        if unchanged and found != file.checksum:
            log.warning("%s: the size is right, the listed checksum is of another form", name)
        if unchanged or found == file.checksum:
            return _accept(file)
        file.part.unlink()
        log.warning("%s: wrong checksum: what has arrived is deleted", name)
        before = found
    raise ProjectError(
        f"{name}: arrived twice with a wrong checksum ({found} instead of {file.checksum})\n"
        "Try again later or from another network."
    )


def _transfer(session: requests.Session, file: _File, backoff: float) -> None:
    """Fills the part file up to the listed size, over as many connections as it takes."""
    failures = 0
    while True:
        start = _size(file.part) if file.size else 0
        if file.size and start >= file.size:
            return
        try:
            return _receive(session, file, start)
        except (requests.RequestException, _Cut) as error:
            failures = 1 if _size(file.part) - start >= ENOUGH_BYTES else failures + 1
            reason = f"{file.target.name}: {_reason(error)}"
        if failures > RETRIES:
            raise ProjectError(
                f"{reason}; given up after {failures} attempts\n"
                "What has arrived is kept: the same command continues the download."
            )
        log.warning("%s: trying again", reason)
        time.sleep(backoff * 2 ** (failures - 1))


def _receive(session: requests.Session, file: _File, start: int) -> None:
    """One request: what it brings is appended, or starts the part file anew."""
    name = file.target.name
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with session.get(file.url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        continues = answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if answer.status_code == 416 or (answer.status_code == 206 and not continues):
            file.part.unlink(missing_ok=True)
            raise _Cut("the server cannot continue, so it starts anew")
        if answer.status_code in BUSY:
            raise _Cut(f"the server answers {answer.status_code} {answer.reason}")
        is_page = "text/html" in answer.headers.get("Content-Type", "")
        if answer.status_code not in (200, 206) or is_page:
            raise _refused(name, answer)
        done = start if answer.status_code == 206 else 0
        size = decimal(file.size) if file.size else "size unknown"
        log.info("%s (%s): fetching, from byte %d", name, size, done)
        console = Console(stderr=True)
        columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
        with (
            file.part.open("ab" if done else "wb") as out,
            Progress(*columns, console=console, disable=not console.is_terminal) as bar,
        ):
            task = bar.add_task(name, completed=done, total=file.size)
            for chunk in answer.iter_content(2**16):
                out.write(chunk)
                done += len(chunk)
                bar.update(task, completed=done)
                if done > (file.size or MAX_TABLE_BYTES):  # never right, so no more of it
                    return
            out.flush()
            os.fsync(out.fileno())
    if done < (file.size or 0):
        raise _Cut(f"the connection ended after {decimal(done)}")


def _refused(name: str, answer: requests.Response) -> ProjectError:
    kind = answer.headers.get("Content-Type", "no type")
    return ProjectError(
        f"{name}: the server answers {answer.status_code} {answer.reason} ({kind})\n"
        "Try again later, or name another server with DATAVERSE_SERVER."
    )


def _accept(file: _File) -> Path:
    """Gives a part file with the right contents its name."""
    target = file.target
    try:
        _check_archive(file.part)
    except ProjectError:
        file.part.unlink()
        raise
    if target.suffix != ".zip":
        with file.part.open("rb") as table:
            header = table.readline(2**16)
        if header.count(b"\t") > header.count(b","):
            target = target.with_suffix(".tab")
    for other in _names(file.target):
        # Those that would be read in its stead; most often it is a file that was cut short.
        if other <= target and other.is_file() and not filecmp.cmp(other, file.part, shallow=False):
            old = other.with_name(f"{other.name}.{time.strftime('%Y%m%d-%H%M%S')}.old")
            log.warning("%s: has other contents than the original: kept as %s", other, old.name)
            other.rename(old)
    os.replace(file.part, target)
    log.info("%s: complete", target.name)
    return target


def _check_archive(path: Path) -> None:
    """Raises ProjectError for a zip archive (or its part file) that is unsafe to unpack."""
    name = path.name.removesuffix(".part")
    if not name.endswith(".zip"):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except DAMAGED as error:
        reason = printable(str(error), 200)
        raise ProjectError(f"{name}: refused: not a readable zip archive ({reason})") from error
    unsafe = [m.orig_filename for m in members if _is_unsafe(m)]
    if sum(m.file_size for m in members) > HARMLESS_BYTES + MAX_RATIO * _size(path):
        unsafe.append("(all members together)")
    if unsafe:
        raise ProjectError(
            f"{name}: refused: its member '{printable(unsafe[0])}' leads out of the folder, "
            f"is no plain file, or unpacks to more than {MAX_RATIO} times its size"
        )


def _is_unsafe(member: zipfile.ZipInfo) -> bool:
    parts = re.split(r"[/\\]", member.orig_filename)
    outside = parts[0] == "" or parts[0][1:2] == ":" or ".." in parts
    special = stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR)
    bomb = member.file_size > HARMLESS_BYTES + MAX_RATIO * member.compress_size
    return outside or special or bomb


def _reason(error: Exception) -> str:
    """In a few words, for the texts of requests name its own classes."""
    detail = re.search(r"\[(?:Errno|SSL).*?\][^'\")(]*", str(error))
    if detail:
        return f"no connection: {detail[0].strip()}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        return "the connection was cut"
    return str(error)
