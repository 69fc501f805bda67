"""Pages and archives of pages, written by hand byte by byte."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pipeline.errors import InputError
from stages.text.sources.html_extraction import page_text
from stages.text.sources.readers import RawDocument, read
from stages.text.sources.source_listing import SourceFile

PAGE = (
    "<html><head><meta charset={}><title>T</title><script>x = 'hidden'</script></head><body>"
    "<nav><a href=/>Home</a> <a href=/b>About us</a></nav><article><h1>Café</h1>"
    "<p>The first paragraph is long enough to be the main content of this page, is it not?</p>"
    "<p>The second &amp; last one follows.</p></article><footer>Copyright</footer></body></html>"
)
TEXT = (
    "Café\n\nThe first paragraph is long enough to be the main content of this page, is it not?"
    "\n\nThe second & last one follows."
)


def record(kind: str, body: bytes, url: str = "http://a.example/") -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\n"
        "WARC-Date: 2026-01-02T03:04:05Z\r\nWARC-Record-ID: <urn:uuid:1>\r\n"
        f"Content-Type: application/http\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def response(body: bytes, kind: str, *more: str) -> bytes:
    head = "\r\n".join(["HTTP/1.1 200 OK", f"Content-Type: {kind}", *more])
    return record("response", head.encode() + b"\r\n\r\n" + body)


RECORDS = [
    record("warcinfo", b"software: x"),
    record("request", b"GET / HTTP/1.1\r\n\r\n"),
    response(PAGE.format("latin-1").encode("latin-1"), "text/html; charset=ISO-8859-1"),
    response(b"\x89PNG", "image/png"),
    response("plain wörds".encode(), "text/plain"),
    record("conversion", "Übersetzt".encode(), "http://b.example/"),
    response(gzip.compress(PAGE.format("utf-8").encode()), "text/html", "Content-Encoding: gzip"),
]
FOUND = [TEXT, "plain wörds", "Übersetzt", TEXT]


def archive(path: Path, data: bytes) -> list[RawDocument]:
    path.write_bytes(data)
    return list(read(SourceFile("web", path.name, str(path), len(data))))


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
def test_the_main_content_of_a_page(tmp_path: Path, encoding: str) -> None:
    (page,) = archive(tmp_path / "a.html", PAGE.format(encoding).encode(encoding))
    assert page == RawDocument(TEXT)


def test_a_page_of_nothing_is_an_empty_text() -> None:
    assert page_text(b"") == page_text(b"<html></html>") == ""


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.wet", "a.warc.wet.gz"])
def test_an_archive(tmp_path: Path, name: str) -> None:
    """Each record of a compressed archive is a member of its own."""
    squeeze = gzip.compress if name.endswith(".gz") else bytes
    found = archive(tmp_path / name, b"".join(squeeze(one) for one in RECORDS))
    assert [raw.text for raw in found] == FOUND
    assert found[2].meta == {
        "url": "http://b.example/",
        "date": "2026-01-02T03:04:05Z",
        "offset": sum(map(len, RECORDS[:5])),
    }


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_an_archive_that_is_cut_short_is_not_taken_for_whole(tmp_path: Path, name: str) -> None:
    squeeze = gzip.compress if name.endswith(".gz") else bytes
    data = b"".join(squeeze(one) for one in RECORDS)
    for missing in (12, 40, 150):
        with pytest.raises(InputError, match="cannot read the source"):
            archive(tmp_path / name, data[:-missing])


@pytest.mark.parametrize("data", [b"", b"hello\n" * 100])
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InputError, match="cannot read the source"):
        archive(tmp_path / "a.warc", data)
