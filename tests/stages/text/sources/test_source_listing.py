"""Listing, digests and shards of sources, and names that do not exist."""

import pytest

from pipeline.errors import InputError
from stages.text.sources import source_listing
from stages.text.sources.source_file import SourceFile
from stages.text.sources.source_listing import content_digest, list_files, make_shards


@pytest.fixture
def corpus(tmp_path):
    for name in ("b.txt", "a.md", "sub/c.jsonl", "sub/deep/d.txt", "ignored.png"):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "x"}' if name.endswith("jsonl") else name)
    return tmp_path / "corpus"


def places(*names):
    return [(file.source, file.place) for file in list_files(names)]


def test_folders_files_and_globs(corpus, monkeypatch):
    everything = ["a.md", "b.txt", "sub/c.jsonl", "sub/deep/d.txt"]
    assert places(str(corpus)) == [("corpus", name) for name in everything]
    assert places(f"{corpus}/b.txt") == [("corpus", "b.txt")]
    assert places(f"{corpus}/*.txt") == [("corpus", "b.txt")]
    assert places(f"{corpus}/**/*.txt") == [("corpus", "b.txt"), ("corpus", "sub/deep/d.txt")]
    assert places(f"{corpus}/s*/c.jsonl") == [("corpus", "sub/c.jsonl")]
    monkeypatch.chdir(corpus)
    assert places("sub", "b.txt")[-1] == ("corpus", "b.txt")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing", "does not exist"),
        ("corpus/*.csv", "has no readable file"),
        ("corpus/ignored.png", "unknown type"),
        ("nosuch:bucket/x", "unknown source"),
        ("python:doc", "unknown source"),
    ],
)
def test_what_cannot_be_read_is_reported(corpus, monkeypatch, source, message):
    monkeypatch.chdir(corpus.parent)
    with pytest.raises(InputError, match=message) as caught:
        content_digest(source)
    assert caught.value.remedy


def test_the_digest_is_of_content_not_of_place(corpus, tmp_path):
    before = content_digest(str(corpus))
    moved = tmp_path / "elsewhere" / "corpus"
    moved.parent.mkdir()
    corpus.rename(moved)
    assert content_digest(str(moved)) == before
    (moved / "b.txt").write_text("B.txt")
    changed = content_digest(str(moved))
    assert changed != before
    (moved / "b.txt").rename(moved / "bb.txt")
    assert content_digest(str(moved)) not in {before, changed}


def test_shards_hold_all_files_in_order(monkeypatch):
    monkeypatch.setattr(source_listing, "SHARD_BYTES", 10)
    sizes = [3, 3, 3, 3, 50, 1, 9, 1, 10, 11]
    files = [SourceFile("s", str(i), "", size) for i, size in enumerate(sizes)]
    cut = make_shards(files)
    assert [file for shard in cut for file in shard] == files
    assert [[f.size for f in shard] for shard in cut] == [
        [3, 3, 3],
        [3],
        [50],
        [1, 9],
        [1],
        [10],
        [11],
    ]
    assert make_shards([]) == []
