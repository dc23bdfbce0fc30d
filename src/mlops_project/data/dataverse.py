"""What a Dataverse says of HAM10000: the files with their sizes and checksums, and the licence."""

from __future__ import annotations

import logging
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from mlops_project.data.tables import TABLE_ENDINGS
from mlops_project.errors import ProjectError

log = logging.getLogger("mlops_project")

DOI = "doi:10.7910/DVN/DBW86T"
HARVARD = "https://dataverse.harvard.edu"
LICENCE = "CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/)"
TIMEOUT = (15, 60)  # seconds to connect, and between two arrivals
HASHES = {"MD5": "md5", "SHA-1": "sha1", "SHA-256": "sha256", "SHA-512": "sha512"}


@dataclass(frozen=True)
class ListedFile:
    """A file of the listing, and where it is to lie.

    Attributes:
        target: its name on the disk; a table's ending is .tab instead if its text is tab-separated.
        part: holds what has arrived so far.
        url: to fetch it from.
        size: bytes; None: the server does not say.
        algorithm: of its checksum, a name of hashlib.
        checksum: hexadecimal.
        ingested: whether it is a table that the server has converted, fetched as it was uploaded.
    """

    target: Path
    part: Path
    url: str
    size: int | None
    algorithm: str
    checksum: str
    ingested: bool


def list_files(session: requests.Session, server: str, targets: list[Path]) -> list[ListedFile]:
    """Asks a Dataverse what it has of HAM10000.

    Args:
        session: to ask through.
        server: http(s) address, without a slash at its end.
        targets: paths that files of these names are to get.

    Returns:
        As many files as targets, in the same order.

    Raises:
        requests.RequestException: no connection.
        ProjectError: an answer that is no listing, or one that lacks a file.
    """
    url = f"{server}/api/datasets/:persistentId/"
    answer = session.get(url, params={"persistentId": DOI}, timeout=TIMEOUT)
    if answer.status_code != 200:
        raise refused(f"{server}: {DOI}", answer)
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


def _describe(server: str, target: Path, listed: dict[str, dict[str, Any]]) -> ListedFile:
    names = [path.name.lower() for path in possible_names(target)]
    entry = next((listed[name] for name in names if name in listed), None)
    if entry is None:
        raise ProjectError(f"{server}: {target.stem} is missing in the listing of {DOI}")
    ingested = "originalFileFormat" in entry or "originalFileName" in entry
    try:
        checksum = entry.get("checksum") or {"type": "MD5", "value": entry["md5"]}
        return ListedFile(
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


def possible_names(target: Path) -> list[Path]:
    """The names a file may lie under, in the order in which `sources` prefers them."""
    endings = (".zip",) if target.suffix == ".zip" else TABLE_ENDINGS
    return sorted(target.with_suffix(ending) for ending in endings)


def refused(name: str, answer: requests.Response) -> ProjectError:
    """What to tell of an answer that brings nothing; `name`: of what was asked for."""
    kind = answer.headers.get("Content-Type", "no type")
    return ProjectError(
        f"{name}: the server answers {answer.status_code} {answer.reason} ({kind})\n"
        "Try again later, or name another server with DATAVERSE_SERVER."
    )
