"""Archives of pages, written by hand byte by byte."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import pytest
from web_page import PAGE, TEXT

from pipeline.errors import InputError
from stages.text.sources.readers import RawDocument, read
from stages.text.sources.source_file import SourceFile


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
FOUND = [TEXT, "", "plain wörds", "Übersetzt", TEXT]
SKIPPED = ["", "skipped.media_type", "", "", ""]


def archive(path: Path, data: bytes) -> list[RawDocument]:
    path.write_bytes(data)
    return list(read(SourceFile("web", path.name, str(path), len(data))))


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.wet", "a.warc.wet.gz"])
def test_an_archive(tmp_path: Path, name: str) -> None:
    """Each record of a compressed archive is a member of its own."""
    squeeze = gzip.compress if name.endswith(".gz") else bytes
    found = archive(tmp_path / name, b"".join(squeeze(one) for one in RECORDS))
    assert [raw.text for raw in found] == FOUND
    assert [raw.broken for raw in found] == SKIPPED
    assert found[3].meta == {
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


JAPANESE = "石橋のそばの村では春の川がゆっくりと流れ、子どもたちが岸で凧を揚げています。"


@pytest.mark.parametrize("charset", ["none", "x-sjis", "shift-jis; q=1", "Shift_JIS", '"SJIS"', ""])
def test_a_label_that_no_table_has_does_not_end_an_archive(tmp_path: Path, charset: str) -> None:
    page = f"<html><body><article><p>{JAPANESE * 3}</p></article></body></html>".encode("cp932")
    label = f"text/html; charset={charset}" if charset else "text/html"
    found = archive(tmp_path / "a.warc", response(page, label) + RECORDS[5])
    assert [raw.text for raw in found] == [JAPANESE * 3, "Übersetzt"]


def test_a_page_that_cannot_be_decoded_is_a_broken_record(tmp_path: Path) -> None:
    page = PAGE.format("utf-8").replace("last", "ça et là").encode()
    damaged = page.replace(b"second", b"s\xe9cond")
    found = archive(tmp_path / "a.warc", response(damaged, "text/html") + RECORDS[5])
    assert [raw.broken for raw in found] == ["broken.encoding", ""]
    at = damaged.index(b"\xe9cond")
    assert found[0].meta["error"] == f"byte 0xe9 at {at} is not UTF-8"
    assert "s\\xe9cond" in found[0].text
    assert found[0].meta["offset"] == 0


def test_a_page_that_the_crawler_truncated_ends_before_the_cut_character(tmp_path: Path) -> None:
    page = f"<article><p>{JAPANESE * 3}</p></article><p>{JAPANESE}".encode()[:-1]
    whole = response(page, "text/html; charset=utf-8")
    cut = whole.replace(b"WARC-Date", b"WARC-Truncated: length\r\nWARC-Date")
    found = archive(tmp_path / "a.warc", whole + cut)
    assert [raw.broken for raw in found] == ["broken.encoding", ""]
    assert JAPANESE * 3 in found[1].text


def page(number: int) -> bytes:
    text = f"Page number {number} tells at some length of a harbour, its ships and its lights. " * 3
    return f"<html><body><article><p>{text}</p></article></body></html>".encode()


def with_length(one: bytes, change: int) -> bytes:
    """Return the record with another Content-Length."""
    head, _, rest = one.partition(b"Content-Length: ")
    length, _, rest = rest.partition(b"\r\n")
    return head + b"Content-Length: %d\r\n" % (int(length) + change) + rest


@pytest.mark.parametrize("squeeze", [bytes, gzip.compress])
@pytest.mark.parametrize("change", [-200, -1, 3, 40, 170, 5_000, 40 << 20, 10**13])
def test_a_false_length_costs_its_record(tmp_path: Path, change: int, squeeze: object) -> None:
    records = [response(page(number), "text/html") for number in range(6)]
    whole = archive(tmp_path / "whole.warc", b"".join(records))
    records[2] = with_length(records[2], change)
    assert callable(squeeze)
    name = "a.warc" if squeeze is bytes else "a.warc.gz"
    found = archive(tmp_path / name, b"".join(squeeze(one) for one in records))
    good = [raw.text for raw in found if not raw.broken]
    assert not any("WARC" in text for text in good)
    if change == 3:  # the line breaks behind the record: nothing of it is missing
        assert good == [raw.text for raw in whole]
        return
    assert good == [raw.text for number, raw in enumerate(whole) if number != 2]
    (broken,) = (raw for raw in found if raw.broken)
    assert broken.broken == "broken.record" and "Content-Length" in broken.meta["error"]
    assert broken.meta["offset"] == whole[2].meta["offset"] and broken.meta["url"]


BODY = page(7)


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("Content-Encoding: gzip", BODY),
        ("Content-Encoding: br", BODY),
        ("Content-Encoding: foo", BODY),
        ("Transfer-Encoding: chunked", BODY),
        ("Content-Encoding: deflate", zlib.compress(BODY)),
        ("Transfer-Encoding: chunked\r\nContent-Encoding: gzip", gzip.compress(BODY)),
    ],
)
def test_a_body_that_was_decoded_before_it_was_stored_is_read(
    tmp_path: Path, header: str, body: bytes
) -> None:
    found = archive(tmp_path / "a.warc", response(body, "text/html", header) + RECORDS[5])
    assert found[0].text.startswith("Page number 7") and found[1].text == "Übersetzt"


def test_a_body_of_another_encoding_is_a_broken_record(tmp_path: Path) -> None:
    body = bytes(range(256)) * 8
    found = archive(
        tmp_path / "a.warc", response(body, "text/html", "Content-Encoding: gzip") + RECORDS[5]
    )
    assert [raw.broken for raw in found] == ["broken.record", ""]
    assert "encoding" in found[0].meta["error"]


def test_a_response_is_one_whatever_its_header_calls_it(tmp_path: Path) -> None:
    one = response(BODY, "text/html")
    for kind in (b"", b"Content-Type: text/html\r\n"):
        other = one.replace(b"Content-Type: application/http\r\n", kind)
        (found,) = archive(tmp_path / "a.warc", other)
        assert found.text.startswith("Page number 7")


def test_records_of_other_types_are_counted(tmp_path: Path) -> None:
    found = archive(tmp_path / "a.warc", record("resource", b"abc") + RECORDS[0] + RECORDS[5])
    assert [raw.broken for raw in found] == ["skipped.record_type", ""]


def test_a_record_that_is_too_large_is_counted(tmp_path: Path) -> None:
    large = record("response", bytes(33 << 20))
    found = archive(tmp_path / "a.warc", RECORDS[5] + large + RECORDS[5])
    assert [raw.broken for raw in found] == ["", "broken.record", ""]
    assert "32 MiB" in found[1].meta["error"]


def test_what_lies_between_records_is_a_broken_record(tmp_path: Path) -> None:
    found = archive(tmp_path / "a.warc", b"\r\n" + RECORDS[5] + b"junk\r\n" + RECORDS[5])
    assert [raw.broken for raw in found] == ["", "broken.record", ""]
    data = RECORDS[5] + RECORDS[4].replace(b"Content-Length", b"Content-Longth") + RECORDS[5]
    found = archive(tmp_path / "b.warc", data)
    assert [raw.broken for raw in found] == ["", "broken.record", ""]
    assert "no Content-Length" in found[1].meta["error"]


def test_a_page_that_is_too_complex_is_a_broken_record(tmp_path: Path) -> None:
    deep = b"<div>" * 10_000 + b"x"
    data = response(deep, "text/html") + record("conversion", b"next")
    broken, following = archive(tmp_path / "a.warc", data)
    assert (broken.broken, broken.meta["url"]) == ("broken.html", "http://a.example/")
    assert "nested" in broken.meta["error"]
    assert following.text == "next"
