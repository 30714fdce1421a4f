"""Downloads of raw files: `.part` files that resume, retries, and nothing under the final name before it is whole; and
data sets of the Hugging Face Hub."""

from __future__ import annotations

import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from tigerrec.data.base import DatasetError
from tigerrec.data.raw_files import read_lines
from tigerrec.storage.files import FULL, fsync, locked, system_code, write_failure
from tigerrec.text import first_line

logger = logging.getLogger(__name__)

ATTEMPTS = 3
PAUSE = 1.0  # seconds before the second attempt; doubled before each further one
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20  # bytes
HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:/([^/:]+))?(?::(.+))?")
HUB_FORM = "hf://<owner>/<name>, or hf://<owner>/<name>/<configuration>:<split>"
FAULTS = (OSError, http.client.HTTPException, DatasetError)  # urllib's errors and time-outs are OSErrors


def _transfer(url: str, part: Path) -> None:
    """Append what is missing of a `.part` file, or start it anew where the server cannot go on."""
    done = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={done}-", "Accept-Encoding": "identity"} if done else {}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{done}":  # nothing is missing
            return
        raise
    with answer as response:
        resumed = response.status == 206
        start = done if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = tqdm(desc=part.stem, total=total, initial=start, unit="B", unit_scale=True, disable=None, leave=False)
        with open(part, "ab" if resumed else "wb") as file, bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise OSError(f"the connection ended after {part.stat().st_size:,} of {total:,} bytes")


def _check(part: Path, name: str) -> None:
    """Read a finished download to its end; a damaged one is removed."""
    try:
        for _ in read_lines(part, "download it again", packed=name.endswith(".gz")):
            pass
    except DatasetError as error:
        part.unlink()
        raise DatasetError(str(error).split(";")[0].replace(str(part), "what the server sent")) from None


def download(url: str, path: Path) -> None:
    """Download a file; it takes its name once it is whole and, for `.gz`, unpacks to its end. Raises OSError or
    DatasetError if the server cannot be reached, refuses, or sends a damaged file, three times over, and ArtifactError
    if the disk is full."""
    part = path.with_name(f"{path.name}.part")
    for attempt in range(ATTEMPTS):
        try:
            _transfer(url, part)
            _check(part, path.name)
            fsync(part)
            os.replace(part, path)
            fsync(path.parent)
            return
        except FAULTS as error:
            if system_code(error) in FULL:
                raise write_failure(part, error) from error
            code = error.code if isinstance(error, urllib.error.HTTPError) else None
            if code == 416:  # the part is no beginning of this file
                part.unlink(missing_ok=True)
            elif code is not None and 400 <= code < 500 and code not in (408, 429):
                raise
            if attempt == ATTEMPTS - 1:
                raise
            logger.info("download of %s: %s; trying again", path.name, error)
            time.sleep(PAUSE * 2**attempt)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        return f"no connection: {getattr(error.reason, 'strerror', None) or error.reason}"
    return str(error) or type(error).__name__


def download_missing(folder: Path, names: list[str], url: str | None) -> None:
    """Download what a folder lacks of the named files from `<url>/<name>`. Raises DatasetError if a file is missing and
    cannot be downloaded."""

    def missing() -> list[str]:
        return [name for name in names if not (folder / name).is_file()]

    reason = "has no download address"
    if url and missing():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(f"{folder} cannot be written")
            with locked(folder, wait=True, announce=logger.info):
                for name in missing():
                    logger.info("downloading %s/%s to %s", url, name, folder)
                    download(f"{url}/{name}", folder / name)
        except FAULTS as error:
            reason = f"cannot be downloaded from {url} ({_reason(error)})"
    if missing():
        raise DatasetError(
            f"Missing in {folder}: {' and '.join(missing())}, which {reason}; put the files there (docs/data.md "
            "names their sources), or give their folder by `dataset.raw_dir=<folder>`, or use the bundled data with "
            "`dataset=sample`."
        )


def is_hub_address(address: str) -> bool:
    """Whether this is no path, but the address of a data set of the Hugging Face Hub, right or wrong."""
    return address.startswith("hf:/")


def hub_file(address: str) -> str:
    """The name of the file to which a data set of the Hub is downloaded."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '--', address.removeprefix('hf:').strip('/'))}.parquet"


def download_from_hub(address: str, path: Path) -> None:
    """Download a split (`train` where none is named) of a data set of the Hub as a Parquet file, unless it is there.
    Raises DatasetError if the address is wrong, the package `datasets` is missing, or it cannot load the data set."""
    if path.is_file():
        return
    address = re.sub("^hf:/+", "hf://", address)  # a Path has one slash of the two
    named = HUB.fullmatch(address)
    if named is None:
        raise DatasetError(f"{address} is no address of the Hugging Face Hub; write {HUB_FORM}.")
    try:
        from datasets import load_dataset
    except ImportError:
        raise DatasetError(
            f'{address} is read by the package datasets, which is not installed: run `pip install "tigerrec[hf]"`, '
            f"or put the data as {path}."
        ) from None
    name, configuration, split = named.groups()
    part = path.with_name(f"{path.name}.part")
    with locked(path.parent, wait=True, announce=logger.info):
        if path.is_file():  # another process was faster
            return
        logger.info("downloading %s to %s", address, path)
        try:
            load_dataset(name, configuration, split=split or "train").to_parquet(part)
        except Exception as error:  # libraries raise many kinds
            part.unlink(missing_ok=True)
            if system_code(error) in FULL:
                raise write_failure(part, error) from error
            raise DatasetError(
                f"{address} cannot be loaded ({first_line(error)}); write {HUB_FORM}, and connect to the network."
            ) from error
        fsync(part)
        os.replace(part, path)
        fsync(path.parent)
