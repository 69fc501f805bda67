"""Texts of the archives that crawlers write: WARC, and WET with extracted text.

Every record that could hold a text is yielded. One that cannot be read costs no other one: it is
broken, with its place and the reason; one of another media type is skipped, and counted.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastwarc.warc import ArchiveIterator, WarcRecordType

from stages.data.formats.text_encoding import UndecodableText, decode_text
from stages.text.sources.html_extraction import page_text
from stages.text.sources.page_blocks import PageTooComplex
from stages.text.sources.warc_framing import WarcFrame, read_frames

HTML = ("text/html", "application/xhtml+xml")
_CONTROL = WarcRecordType.warcinfo | WarcRecordType.request | WarcRecordType.metadata
_CONTROL |= WarcRecordType.revisit  # records about other records
_BINARY = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")


@dataclass(frozen=True, slots=True)
class ArchivedText:
    """The text of a record."""

    text: str
    origin: dict[str, Any] = field(default_factory=dict)
    """`url`, `date` and `offset` of the record in the decompressed archive; `error` if dropped."""
    dropped: str = ""
    """Rule that drops a record that cannot be read or is not text; else empty."""


def read_archive(stream: io.BufferedReader) -> Iterator[ArchivedText]:
    """Yield the texts of an archive: extracted from HTML responses, or unchanged from conversion
    (WET) and plain-text records.

    Args:
        stream: the archive, decompressed; decompression reports truncation.

    Raises:
        OSError: the stream is not an archive, is damaged or truncated.
    """
    for frame in read_frames(stream):
        if frame.problem:
            yield _broken(frame, "broken.record", frame.problem)
            continue
        try:
            record = _parse(frame)
            if not record.record_type & _CONTROL:
                yield _archived_text(frame, record)
        except UndecodableText as error:
            yield _broken(frame, "broken.encoding", str(error), error.text)
        except PageTooComplex as error:
            yield _broken(frame, "broken.html", str(error))
        except (OSError, ValueError, StopIteration) as error:
            yield _broken(frame, "broken.record", f"its header cannot be parsed: {error}")


def _parse(frame: WarcFrame) -> Any:
    header = frame.header
    if frame.content.startswith(b"HTTP/"):  # whatever the header calls it
        header = re.sub(rb"(?im)^content-type:[^\n]*\n", b"", header)
        first, _, rest = header.partition(b"\n")
        header = first + b"\nContent-Type: application/http\r\n" + rest
    record = next(iter(ArchiveIterator(io.BytesIO(header + frame.content), parse_http=False)))
    record.freeze()
    return record


def _broken(frame: WarcFrame, rule: str, reason: str, text: str = "") -> ArchivedText:
    return ArchivedText(text, {**_origin(frame), "error": reason}, rule)


def _origin(frame: WarcFrame) -> dict[str, Any]:
    """Return the place of a record; its header need not be whole."""
    found = dict(re.findall(rb"(?im)^WARC-(Target-URI|Date):[ \t]*([^\r\n]*)", frame.header))
    values = {
        name.lower(): value.decode("utf-8", "backslashreplace") for name, value in found.items()
    }
    return {
        "url": values.get(b"target-uri", ""),
        "date": values.get(b"date", ""),
        "offset": frame.offset,
    }


def _archived_text(frame: WarcFrame, record: Any) -> ArchivedText:
    origin = _origin(frame)
    if record.record_type == WarcRecordType.conversion:
        return ArchivedText(decode_text(record.reader.read()), origin)
    if record.record_type != WarcRecordType.response:
        return ArchivedText("", origin, "skipped.record_type")
    body, record = _http_body(frame, record)
    kind = (record.http_content_type or "").lower()
    charset, truncated = record.http_charset or "", "WARC-Truncated" in record.headers
    if kind not in HTML and kind != "text/plain":
        return ArchivedText("", {**origin, "error": kind or "no media type"}, "skipped.media_type")
    if body is None:
        return _broken(frame, "broken.record", "its content is not of the encoding that it states")
    if kind in HTML:
        return ArchivedText(page_text(body, charset, truncated=truncated), origin)
    return ArchivedText(decode_text(body, (charset,), truncated=truncated), origin)


def _http_body(frame: WarcFrame, record: Any) -> tuple[bytes | None, Any]:
    """Return the body of a response and the parsed record. Crawlers store decoded bodies under the
    header of the encoded ones, so that an encoding that cannot be undone was undone before; None if
    the body is then no text."""
    for undone in ("all", "content", "transfer", "none"):
        try:
            record.parse_http(auto_decode=undone, quirks_mode=True)
            body: bytes = record.reader.read()
        except OSError:
            record = _parse(frame)
            continue
        return (None if undone != "all" and _BINARY.search(body, 0, 1024) else body), record
    return None, record
