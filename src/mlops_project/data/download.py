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
import time
from contextlib import ExitStack
from pathlib import Path

import requests
from filelock import FileLock, Timeout
from rich.console import Console
from rich.filesize import decimal
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from mlops_project.data.archives import check_archive
from mlops_project.data.dataverse import (
    HARVARD,
    TIMEOUT,
    ListedFile,
    list_files,
    possible_names,
    refused,
)
from mlops_project.data.sources import SYNTHETIC_MARKER
from mlops_project.data.tables import MAX_TABLE_BYTES
from mlops_project.errors import InputError, ProjectError, file_failure

log = logging.getLogger("mlops_project")

# The table comes last: until the images are complete, the folder is not taken for a data set.
TRAINING = ("HAM10000_images_part_1.zip", "HAM10000_images_part_2.zip", "HAM10000_metadata.csv")
TEST = ("ISIC2018_Task3_Test_Images.zip", "ISIC2018_Task3_Test_GroundTruth.csv")

RETRIES = 4  # after connections in a row that were cut before they brought ENOUGH_BYTES
ENOUGH_BYTES = 2**20
BACKOFF_SECONDS = 1.0  # before the first retry; doubles with each
BUSY = (408, 429, 500, 502, 503, 504)  # answers that another attempt may better
SPARE_BYTES = 100 * 2**20  # stay free on the disk


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
        InputError: `server` is no http(s) address, or a folder holds synthetic images.
        ProjectError: no connection, no room, no permission, an answer that is none, a file that is
            missing, damaged or unsafe. What has arrived is kept for the next call.
    """
    folder = Path(os.path.abspath(folder))
    server = (server == HARVARD and os.environ.get("DATAVERSE_SERVER")) or server
    if not re.match(r"https?://[^/\s]", server):
        raise InputError(f"{server}: not the address of a server; one looks like {HARVARD}")
    targets = [folder / name for name in TRAINING]
    targets += [folder.parent / f"{folder.name}_test" / name for name in TEST if test]
    for place in sorted({target.parent for target in targets}):
        if (place / SYNTHETIC_MARKER).exists():
            raise InputError(
                f"{place}: holds synthetic images, and real ones beside them would count as such\n"
                "Name another folder: dataset.py download DIR"
            )
    try:
        with ExitStack() as stack:
            session = stack.enter_context(requests.Session())
            files = list_files(session, server.rstrip("/"), targets)
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


def _find(file: ListedFile) -> Path | None:
    """Where the file lies already, with the right checksum."""
    for path in possible_names(file.target):
        if path.is_file() and _checksum(path, file.algorithm) == file.checksum:
            check_archive(path)
            log.info("%s: already there, with the right checksum", path.name)
            return path
    return None


def _checksum(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        new = hashlib.new(algorithm, usedforsecurity=False)
        return hashlib.file_digest(file, lambda: new).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_room(files: list[ListedFile]) -> None:
    needed = SPARE_BYTES + sum(max(0, (file.size or 0) - _size(file.part)) for file in files)
    for folder in {file.target.parent for file in files}:
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise ProjectError(
                f"{folder}: {decimal(needed)} of room are needed, {decimal(free)} are free\n"
                "Make room or name a folder on another disk."
            )


def _fetch(session: requests.Session, file: ListedFile, backoff: float) -> Path:
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


def _transfer(session: requests.Session, file: ListedFile, backoff: float) -> None:
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


def _receive(session: requests.Session, file: ListedFile, start: int) -> None:
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
            raise refused(name, answer)
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


def _accept(file: ListedFile) -> Path:
    """Gives a part file with the right contents its name."""
    target = file.target
    try:
        check_archive(file.part)
    except ProjectError:
        file.part.unlink()
        raise
    if target.suffix != ".zip":
        with file.part.open("rb") as table:
            header = table.readline(2**16)
        if header.count(b"\t") > header.count(b","):
            target = target.with_suffix(".tab")
    for other in possible_names(file.target):
        # Those that would be read in its stead; most often it is a file that was cut short.
        if other <= target and other.is_file() and not filecmp.cmp(other, file.part, shallow=False):
            old = other.with_name(f"{other.name}.{time.strftime('%Y%m%d-%H%M%S')}.old")
            log.warning("%s: has other contents than the original: kept as %s", other, old.name)
            other.rename(old)
    os.replace(file.part, target)
    log.info("%s: complete", target.name)
    return target


def _reason(error: Exception) -> str:
    """The failure in a few words, for the texts of requests name its own classes."""
    detail = re.search(r"\[(?:Errno|SSL).*?\][^'\")(]*", str(error))
    if detail:
        return f"no connection: {detail[0].strip()}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        return "the connection was cut"
    return str(error)
