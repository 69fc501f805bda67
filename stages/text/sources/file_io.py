"""Files of a source, here or behind a URL: opened, decompressed, hashed, and their errors."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from pipeline.errors import InputError
from stages.curation import content_digest
from stages.curation.broken_files import BrokenFile
from stages.data.input_errors import as_input_error
from stages.text.sources import fsspec_files
from stages.text.sources.file_formats import compression
from stages.text.sources.gzip_members import GzipMembers
from stages.text.sources.source_file import SourceFile


@contextmanager
def open_file(file: SourceFile) -> Iterator[io.BufferedReader]:
    """Open a file for reading, decompressed."""
    with (
        fsspec_files.open_url(file.path) if file.is_remote else Path(file.path).open("rb") as stream
    ):
        packed = compression(file.place)
        if packed == ".gz":
            yield io.BufferedReader(GzipMembers(stream))
        elif packed == ".zst":
            import pyarrow as pa

            # Unlike zstandard's own reader, Arrow's raises when the file is truncated.
            yield io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stream), "zstd"))
        elif packed:
            yield io.BufferedReader({".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}[packed](stream))
        else:
            yield stream


def read_errors(file: SourceFile) -> AbstractContextManager[None]:
    """Return a context that raises what prevents reading as an `InputError`.

    Raises:
        BrokenFile: within the context, if the file is damaged or truncated.
        InputError: if it is missing or its permissions forbid reading.
    """
    return as_input_error(partial(_translate, file), hide_cause=file.is_remote)


def _translate(file: SourceFile, error: Exception) -> InputError | None:
    if file.is_remote and fsspec_files.is_storage_error(error):
        return fsspec_files.url_error(file.path, error)
    if not isinstance(error, OSError | EOFError | zlib.error | lzma.LZMAError):
        return None
    refused = isinstance(error, OSError) and error.errno is not None
    kind = InputError if refused or isinstance(error, ConnectionError) else BrokenFile
    return kind(
        f"cannot read the source: {error}",
        where=file.display_path,
        remedy="repair or remove the file",
    )


def file_digest(file: SourceFile) -> str:
    """Return what identifies the content of a file.

    Raises:
        InputError: the file cannot be read.
    """
    if file.is_remote:
        return fsspec_files.url_digest(file.path)
    try:
        return content_digest.file_digest(Path(file.path))
    except OSError as error:
        raise InputError(
            f"cannot read the source: {error.strerror}",
            where=file.path,
            remedy="check its file permissions",
        ) from error
