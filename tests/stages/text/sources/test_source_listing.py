"""Listing, digests and shards of sources, and names that do not exist."""

from pathlib import Path

import fsspec
import pytest

from pipeline.errors import InputError
from stages.curation.folder_listing import LeftOut
from stages.text.sources import fsspec_files, source_listing
from stages.text.sources.file_formats import RECORD_FORMATS
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


@pytest.mark.parametrize("name", ["a?b", "a#b", "50%41", "a b", "ü数", "x=y&z"])
def test_odd_names_are_read_from_folders_uris_and_object_stores(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / f"{name}.txt").write_text(name)
    for source in (str(folder), f"file://{folder}", folder.as_uri()):
        (file,) = list_files([source])
        assert Path(file.path).read_text() == name
    storage = fsspec.filesystem("memory")
    storage.pipe(f"/{name}/{name}.txt", name.encode())
    for source in (f"memory://{name}", f"memory://{name}/{name}.txt"):
        (file,) = list_files([source])
        assert fsspec_files.open_url(file.path).read() == name.encode()
    storage.rm(f"/{name}", recursive=True)


def test_what_is_not_read_is_counted_and_named(corpus):
    (corpus / ".git").mkdir()
    (corpus / "sub" / "x.docx").touch()
    left_out = LeftOut()
    assert len(list_files([str(corpus)], left_out)) == 4
    assert left_out == {"files .png": 1, "files .docx": 1, "folders named .git": 1}
    with pytest.raises(InputError, match=r"no readable file \(it has files .docx: 1\)"):
        list_files([f"{corpus}/sub/*.docx"])


def test_sources_of_one_name_share_no_place(tmp_path):
    for place in ("one/data/a.txt", "two/data/a.txt", "two/data/b.txt", "three/data/c.txt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(place)
    names = [str(tmp_path / name / "data") for name in ("one", "two", "three")]
    found = places(*names)
    second = [("data (2)", "a.txt"), ("data (2)", "b.txt")]
    assert found == [("data", "a.txt"), *second, ("data", "c.txt")]
    assert places(names[0], names[0]) == [("data", "a.txt"), ("data (2)", "a.txt")]


def test_files_of_records_alone_can_be_listed(corpus):
    unread = LeftOut()
    files = list_files([str(corpus)], unread, RECORD_FORMATS)
    assert [file.place for file in files] == ["sub/c.jsonl"]
    assert unread == {"files .txt": 2, "files .md": 1, "files .png": 1}
    before = content_digest(str(corpus), RECORD_FORMATS)
    (corpus / "b.txt").write_text("other")
    assert content_digest(str(corpus), RECORD_FORMATS) == before
    (corpus / "sub/c.jsonl").write_text('{"text": "y"}')
    assert content_digest(str(corpus), RECORD_FORMATS) != before
    for source, message in (
        (f"{corpus}/b.txt", "unknown type"),
        (f"{corpus}/*.md", "no readable file"),
        ("python:docs", "texts without fields"),
    ):
        for call in (
            lambda s: list_files([s], None, RECORD_FORMATS),
            lambda s: content_digest(s, RECORD_FORMATS),
        ):
            with pytest.raises(InputError, match=message) as error:
                call(source)
            assert ".txt" not in error.value.remedy and ".parquet" in error.value.remedy
