"""Files behind a URL, by fsspec: listed in a fixed order, identified by content, read as a stream.

A URL may carry a password or a signature. `${env:NAME}` stands for one in a pipeline file, and
no message or record contains it: `redact_urls` removes user, password and query.
"""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager
from functools import partial
from pathlib import PurePosixPath
from typing import Any, cast

import xxhash

from pipeline.errors import InputError
from pipeline.redaction import redact, resolve_secrets, secret_names
from stages.curation.folder_listing import LeftOut, is_within_ignored, unread_reason
from stages.data.input_errors import as_input_error
from stages.text.sources.file_formats import FileFormats

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?:::|://)")
_SECRET_PART = re.compile(
    r"://[^/\s:@]*:(?!\$\{env:)[^/\s]*@"
    r"|[?&](?:x-(?:amz|goog)-(?:signature|security-token)|sig(?:nature)?|\w*token|\w*key)"
    r"=(?!\$\{env:)",
    re.IGNORECASE,
)
SECRET_IN_URL = (
    "a URL spells out a secret",
    "write ${env:NAME} in its place, or use the settings of the storage",
)
_BUFFER = 1 << 20  # bytes
_LIBRARIES = {
    *("adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google"),
    *("httpx", "httpx2", "huggingface_hub", "paramiko", "requests", "s3fs", "urllib3"),
}
_CREDENTIALS = "check the credentials of this storage in the environment"


def is_url(source: str) -> bool:
    """Return whether a source is a URL: `s3://…`, `https://…`, `zip://*.jsonl::gs://…`."""
    return bool(_URL.match(source))


def contains_secret(source: str) -> bool:
    """Return whether a URL contains a password or a signature in plain text."""
    return is_url(source) and bool(_SECRET_PART.search(source))


def redact_urls(text: str) -> str:
    """Return the text without user, password, query and fragment in its URLs."""
    return re.sub(r"\S+://\S+", _strip_secrets, text)


def _strip_secrets(url: re.Match[str]) -> str:
    return re.sub(r"[?#][^\s'\"]*", "", re.sub(r"://[^/\s]*@", "://", url[0]))


def list_url(
    source: str, formats: FileFormats, left_out: LeftOut
) -> tuple[str, list[tuple[str, str, int]]]:
    """List the files that a URL names: itself, those below it, or those that match `*` in it.

    Args:
        source: the URL.
        formats: those of the files that are read.
        left_out: counts the others.

    Returns:
        The name of their source, and for each file its name within the source, its full URL, and
        its size in bytes (0 where the storage does not report it), in order of the names.

    Raises:
        InputError: the URL cannot be listed, or holds nothing readable.
    """
    with _url_errors(source):
        system, path = _filesystem(source)
        path = path.rstrip("/")
        root, found = _matching_files(system, path)
    query = _url_query(path)
    files = []
    for name, info in sorted(found.items()):
        plain = name.removesuffix(query) if query else name
        place = plain.removeprefix(root).strip("/")
        if info.get("type") == "directory" or is_within_ignored(place, left_out):
            continue
        if reason := unread_reason(PurePosixPath(place).name, formats.accepts):
            left_out[reason] += 1
            continue
        url = resolve_secrets(source) if name == path else str(system.unstrip_protocol(name))
        files.append((place, url, int(info.get("size") or 0)))
    if not files:
        raise InputError(
            f"source {redact_urls(source)!r} holds no readable file", remedy=formats.remedy
        )
    return root.rstrip("/").rpartition("/")[2] or "/", files


def _matching_files(system: Any, path: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the folder that names are relative to, and the files in it with their metadata."""
    plain = path.removesuffix(_url_query(path))
    if magic := re.search(r"[*\[]", plain):
        return plain[: magic.start()].rpartition("/")[0], system.glob(path, detail=True)
    if system.isfile(path):
        return plain.rpartition("/")[0], {path: system.info(path)}
    found = system.find(path, detail=True)
    if not found:
        system.info(path)  # raises: it does not exist, or may not be read
    return plain, found


def _url_query(path: str) -> str:
    """Return the query of an HTTP address; elsewhere a name may contain a question mark."""
    return "".join(path.partition("?")[1:]) if path.startswith(("http://", "https://")) else ""


def url_digest(url: str) -> str:
    """Return what identifies the content: the storage's checksum where it has one, else a hash.

    Raises:
        InputError: the URL cannot be read.
    """
    with _url_errors(url):
        system, path = _filesystem(url)
        checksum = _checksum(system.info(path), system.protocol)
        if checksum:
            return checksum
        state = xxhash.xxh3_128()
        with open_url(url) as stream:
            while block := stream.read(_BUFFER):
                state.update(block)
        return state.hexdigest()


def _checksum(info: dict[str, Any], protocol: str | tuple[str, ...]) -> str:
    """Return the MD5 of the content, if the storage has it. An ETag of S3 is an MD5 unless it
    contains a dash; the ETag of a web server may be anything."""
    etag = str(info.get("ETag") or "").strip('"')
    if "s3" in protocol and re.fullmatch(r"[0-9a-f]{32}", etag):
        return f"md5:{etag}"
    known = info.get("md5Hash") if "gs" in protocol else None
    return f"md5:{known}" if known else ""


def open_url(url: str) -> io.BufferedReader:
    """Open a URL for reading its bytes as stored, with read-ahead."""
    system, path = _filesystem(url)
    stream = system.open(path, "rb")
    if getattr(stream, "size", 0) is None and path.endswith(".parquet"):
        with stream:  # the server sends no ranges, and a footer is read first
            return io.BufferedReader(io.BytesIO(stream.read()))
    return io.BufferedReader(cast(io.RawIOBase, stream), _BUFFER)


def _filesystem(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    system, path = url_to_fs(resolve_secrets(url))
    return system, str(path)


def _url_errors(url: str) -> AbstractContextManager[None]:
    """Return a context that raises what storage and its library refuse as an `InputError`."""
    return as_input_error(partial(url_error, url), hide_cause=True)


def is_storage_error(error: Exception) -> bool:
    """Return whether an error comes from the storage or the network, not from a file's content."""
    if isinstance(error, FileNotFoundError | PermissionError | ImportError):
        return True
    library = type(error).__module__.partition(".")[0]
    return library in _LIBRARIES or (isinstance(error, OSError) and error.errno is not None)


def url_error(url: str, error: Exception) -> InputError:
    """Return why a URL cannot be read, without secrets: the library's message may contain some."""
    source, status = redact_urls(url), getattr(error, "status", None)
    if isinstance(error, ImportError | ValueError) and (package := _package(url)):
        message, remedy = f"source {source!r} needs a package that is not installed", package
    elif isinstance(error, FileNotFoundError):
        message, remedy = f"source {source!r} does not exist", "check the URL in `sources`"
    elif isinstance(error, PermissionError) or status in {401, 403} or "Credentials" in repr(error):
        message, remedy = f"no permission to read source {source!r}", _CREDENTIALS
    else:
        text = redact_urls(redact(str(error), secret_names(url)))  # before it is cut
        why = f"{type(error).__name__}: {text[:300]}"
        message, remedy = f"cannot read source {source!r}: {why}", "check the URL and the network"
    return InputError(message, remedy=remedy)


def _package(url: str) -> str:
    """Return what to install for a URL's protocol; empty if it can be read."""
    from fsspec.registry import get_filesystem_class, known_implementations

    for protocol in (part.partition("://")[0] for part in url.split("::")):
        try:
            get_filesystem_class(protocol)
        except (ImportError, ValueError):
            known = known_implementations.get(protocol)
            hint = str(known.get("err", "")) if known else ""
            return hint or f"known protocols are {', '.join(sorted(known_implementations))}"
    return ""
