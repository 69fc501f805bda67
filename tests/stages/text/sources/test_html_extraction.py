"""Pages, written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from web_page import PAGE, TEXT

from stages.text.sources.html_extraction import page_text
from stages.text.sources.readers import RawDocument, read
from stages.text.sources.source_listing import SourceFile


def archive(path: Path, data: bytes) -> list[RawDocument]:
    path.write_bytes(data)
    return list(read(SourceFile("web", path.name, str(path), len(data))))


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
def test_the_main_content_of_a_page(tmp_path: Path, encoding: str) -> None:
    (page,) = archive(tmp_path / "a.html", PAGE.format(encoding).encode(encoding))
    assert page == RawDocument(TEXT)


def test_a_page_of_nothing_is_an_empty_text() -> None:
    assert page_text(b"") == page_text(b"<html></html>") == ""


def test_a_page_that_is_too_complex_is_a_broken_document(tmp_path: Path) -> None:
    (page,) = archive(tmp_path / "a.html", b"<div>" * 10_000 + b"x")
    assert (page.text, page.broken) == ("", "broken.html")
    assert "nested more than" in page.meta["error"]
