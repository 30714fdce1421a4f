"""The lines of raw files: whatever they are packed with, in whatever encoding, numbered, to their very end."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from tigerrec.data.base import DatasetError

LINE_LIMIT = 10_000_000  # bytes
BOM = b"\xef\xbb\xbf"
MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}  # byte order marks
PACKED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".zip": "zip"}
PARQUET = b"par1\x15"  # in small letters
WORKBOOK = "[Content_Types].xml"


def _zstd(file: BinaryIO) -> BinaryIO:
    import pyarrow

    return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(file), "zstd")))


def _zip(file: BinaryIO) -> BinaryIO:
    archive = zipfile.ZipFile(file)
    return cast(BinaryIO, archive.open(_member(archive)))


def _member(archive: zipfile.ZipFile) -> str:
    """The one file of a zip beside hidden ones and those that macOS adds."""
    names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    if WORKBOOK in names:
        raise DatasetError("is a workbook; save its table as CSV")
    shown = [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)]
    if len(shown) != 1:
        raise DatasetError(f"holds {len(shown)} files{_few(shown)}, not one; unpack it and give the one that is meant")
    return shown[0]


def _few(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{' …' if len(names) > 3 else ''})" if names else ""


def _xz(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, lzma.LZMAFile(file))


UNPACK: dict[bytes, Callable[[BinaryIO], BinaryIO]] = {
    b"\x1f\x8b": lambda file: cast(BinaryIO, gzip.GzipFile(fileobj=file)),
    b"BZh": lambda file: cast(BinaryIO, bz2.BZ2File(file)),
    b"\xfd7zXZ\x00": _xz,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"PK\x03\x04": _zip,
    b"PK\x05\x06": _zip,  # without any file
}
"""What a packed file begins with → how it is read."""


def unpacked_suffix(path: Path) -> str:
    """The ending of a file in small letters, without that of its packing."""
    return Path(path.stem if path.suffix.lower() in PACKED else path.name).suffix.lower()


def content_suffix(path: Path) -> str:
    """As `unpacked_suffix`; of a zip whose name tells nothing of it, the ending of the one file that it holds."""
    suffix = unpacked_suffix(path)
    if not suffix and path.suffix.lower() == ".zip":
        with contextlib.suppress(OSError, zipfile.BadZipFile, DatasetError), zipfile.ZipFile(path) as archive:
            return Path(_member(archive)).suffix.lower()
    return suffix


def _unpacked(file: BinaryIO, packed: bool) -> BinaryIO:
    """What a file holds, unpacked where its first bytes name a packing. Raises BadGzipFile where it is `packed` by its
    name and begins otherwise."""
    start = file.read(8)
    file.seek(0)
    for mark, unpack in UNPACK.items():
        if start.startswith(mark):
            return unpack(file)
    if packed:
        raise EOFError if not start else gzip.BadGzipFile
    return file


def _checked(encoding: str) -> str:
    """The usual name of an encoding. Raises LookupError if it is none of files of text."""
    if not encoding.isprintable() or (name := codecs.lookup(encoding).name) in ("idna", "punycode"):
        raise LookupError(f"{encoding!r} is no encoding of files")
    "".encode(encoding)
    return name


def _decoded(file: BinaryIO, encoding: str) -> BinaryIO:
    """A file in UTF-8, whatever it was in; UTF-16 and UTF-32 are known by their byte order marks."""
    start = cast(io.BufferedReader, file).peek(4)
    marked = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
    if marked is None and _checked(encoding) in ("utf-8", "ascii"):
        return file
    import pyarrow

    source = pyarrow.PythonFile(file, mode="r")
    recoded = pyarrow.transcoding_input_stream(source, marked or encoding, "utf-8")
    return cast(BinaryIO, io.BufferedReader(recoded))


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    mark, number = BOM, 0
    while line := file.readline(LINE_LIMIT + 1):
        number += 1
        if len(line) > LINE_LIMIT and not line.endswith(b"\n"):
            while (rest := file.readline(LINE_LIMIT)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        elif (text := line.removeprefix(mark)).strip():
            yield number, text
        mark = b""


@contextlib.contextmanager
def _refusing(path: Path, remedy: str, encoding: str) -> Iterator[None]:
    """Whatever a library finds wrong with a packed file is a sentence that ends in the remedy."""
    try:
        yield
        return
    except gzip.BadGzipFile as error:
        is_damaged = "CRC" in str(error) or "length" in str(error)
        packing = PACKED.get(path.suffix.lower(), "gzip")
        fault = "fails its checksum" if is_damaged else f"is not a {packing} file"
    except EOFError:
        fault = "is cut short"
    except (zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, NotImplementedError):
        fault = "is damaged inside, or packed in a way that cannot be read"
    except (UnicodeError, LookupError) as error:
        is_given = encoding != "utf-8"
        own = "name its own by `dataset.encoding=<name>`, as utf-8 or latin-1" if is_given else "write it in UTF-8"
        where = f" in the encoding {encoding}" if is_given else ""
        raise DatasetError(f"{path} cannot be read{where} ({error}); {own}.") from None
    except OSError as error:
        fault = f"cannot be read ({error.strerror or error})"
    raise DatasetError(f"{path} {fault}; {remedy}.")


@contextlib.contextmanager
def opened(path: Path, remedy: str, packed: bool | None = None, encoding: str = "utf-8") -> Iterator[BinaryIO]:
    """A file to read in UTF-8, unpacked (gzip, bzip2, xz, zstd, or a zip of one file) as its first bytes tell, in
    `encoding` or, by its byte order mark, UTF-16. `packed` says whether it must be packed; None: its name tells.

    Raises DatasetError, which ends in the `remedy`, if the file cannot be read, is a web page, not packed, cut short,
    damaged, or in another encoding; while its content is read too.
    """
    with _refusing(path, remedy, encoding), open(path, "rb") as file:
        start = file.read(64).removeprefix(BOM).lstrip().lower()
        file.seek(0)
        if start.startswith((b"<!doctype", b"<html", b"<?xml")):
            raise DatasetError(f"{path} is a web page, not a data file; {remedy}.")
        if start.startswith(PARQUET):
            raise DatasetError(f"{path} is a Parquet file; give it a name that ends in .parquet.")
        is_packed = path.suffix.lower() in PACKED if packed is None else packed
        try:
            content = _unpacked(file, is_packed)
        except DatasetError as error:
            raise DatasetError(f"{path} {error}.") from None
        yield _decoded(content, encoding)


def read_lines(
    path: Path, remedy: str, packed: bool | None = None, encoding: str = "utf-8"
) -> Iterator[tuple[int, bytes | None]]:
    """The number and the bytes, in UTF-8, of each line of a file (see `opened`) but empty ones, without a byte order
    mark; a line beyond 10 MB comes as None. Raises DatasetError as `opened`."""
    with opened(path, remedy, packed, encoding) as file:
        yield from _lines(file)
