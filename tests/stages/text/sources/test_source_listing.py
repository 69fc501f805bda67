"""Where text comes from: every format, every way to name it, and what is wrong with it."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.errors import InputError
from stages.text.python_docs.docstrings import documented_objects
from stages.text.python_docs.holdout import is_held_out
from stages.text.python_docs.installed_files import (
    InstalledFile,
    installation_digest,
    installed_files,
    module_name,
)
from stages.text.sources import readers, source_listing
from stages.text.sources.readers import BrokenFile, RawDocument, read
from stages.text.sources.source_listing import (
    PYTHON_DOCS,
    SourceFile,
    content_digest,
    list_files,
    make_shards,
)

LINES = b'{"text": "one", "n": 1}\n\n{"text": "two"}\n'


def file_of(path):
    return SourceFile("test", path.name, str(path), path.stat().st_size)


def texts(path, **options):
    return [raw.text for raw in read(file_of(path), **options)]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl.gz", gzip.compress(LINES)),
        ("a.jsonl.zst", zstandard.compress(LINES)),
        ("a.JSONL", LINES),
    ],
)
def test_json_lines(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    found = list(read(file_of(tmp_path / name)))
    assert found == [RawDocument("one", {"line": 1}), RawDocument("two", {"line": 3})]


def test_broken_records_are_kept_aside(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "ok"}\n{"text": \n{"body": "x"}\n{"text": 5}\n[1]\n\xff\xfe\n')
    broken = [raw.broken for raw in read(file_of(path))]
    column = "broken.text_column"
    assert broken == ["", "broken.json", column, column, column, "broken.json"]
    assert texts(path, text_column="body")[2] == "x"


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["one", None, "three"]}), path)
    found = list(read(file_of(path), "body"))
    assert [(r.text, r.broken) for r in found][1] == ("", "broken.text_column")
    assert found[2] == RawDocument("three", {"row": 2})
    with pytest.raises(InputError, match="no column 'text'") as caught:
        texts(path)
    assert "body" in caught.value.remedy


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.zst"])
def test_csv(tmp_path, name):
    data = b'\xef\xbb\xbfid,body\n1,"one, or\ntwo"\n2\n3,b\x00\xff,more\n4,four\n'
    squeeze = {"gz": gzip.compress, "zst": zstandard.compress}.get(name.rsplit(".")[-1], bytes)
    (tmp_path / name).write_bytes(squeeze(data))
    found = list(read(file_of(tmp_path / name), "body"))
    assert found[0] == RawDocument("one, or\ntwo", {"line": 3})
    assert [raw.broken for raw in found] == ["", "broken.columns", "broken.columns", ""]
    assert found[3] == RawDocument("four", {"line": 6})
    with pytest.raises(InputError, match="no column 'text'") as caught:
        texts(tmp_path / name)
    assert "id, body" in caught.value.remedy


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("naïve".encode(), "naïve"),
        (b"\xef\xbb\xbfwith a mark", "with a mark"),
        ("wide".encode("utf-16"), "wide"),
        (b"\xff\xfeodd", "\ufffd\ufffdodd"),
        ("caf\xe9 au lait".encode("latin-1"), "café au lait"),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".md", ".rst"])
def test_whole_files_in_any_encoding(tmp_path, data, text, suffix):
    (tmp_path / f"a{suffix}").write_bytes(data)
    assert texts(tmp_path / f"a{suffix}") == [text]


@pytest.mark.parametrize(
    "name", ["cut.jsonl.gz", "cut.jsonl.zst", "junk.jsonl.gz", "x.parquet", "x.csv"]
)
def test_damaged_files_are_the_users_to_mend(tmp_path, name):
    long = b'{"text": "' + bytes(range(97, 123)) * 4000 + b'"}\n'
    whole = {"gz": gzip.compress(long), "zst": zstandard.compress(long)}
    data = whole.get(name.rsplit(".")[-1], b"PAR1 not really")
    (tmp_path / name).write_bytes(data[: len(data) // 2] if "cut" in name else b"junk" + data)
    with pytest.raises(InputError) as caught:
        texts(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00,\xff\n1,2\n", "it holds no text"),
        (b'text\none\n"' + b"x" * 2000 + b"\n", "line 2: field larger than"),
    ],
)
def test_what_is_no_csv_is_a_broken_file(tmp_path, data, said, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST_FIELD", 1_000)
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(BrokenFile, match=said):
        texts(tmp_path / "a.csv")


def test_a_header_in_another_encoding_is_a_header(tmp_path):
    (tmp_path / "a.csv").write_bytes("id,catégorie\n1,x\n".encode("latin-1"))
    with pytest.raises(InputError, match="no column 'text'"):
        texts(tmp_path / "a.csv")


def test_a_file_that_vanished(tmp_path):
    with pytest.raises(InputError, match="cannot read the source"):
        list(read(SourceFile("test", "a.txt", str(tmp_path / "a.txt"), 1)))


def test_metadata_is_read_from_its_description(tmp_path):
    path = tmp_path / "x-1.dist-info" / "METADATA"
    path.parent.mkdir()
    path.write_text("Metadata-Version: 2.1\nName: x\n\n# X\n\nWhat X does.\n")
    place = SourceFile(PYTHON_DOCS, "x-1/x-1.dist-info/METADATA", str(path), 1)
    assert [raw.text for raw in read(place)] == ["# X\n\nWhat X does.\n"]
    path.write_text("Name: x\n")
    assert list(read(place)) == []


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
        ("corpus/ignored.png", "no known type"),
        ("nosuch:bucket/x", "unknown source"),
        ("python:doc", "unknown source"),
    ],
)
def test_what_cannot_be_read_is_said(corpus, monkeypatch, source, message):
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


def test_the_installation_is_listed_fairly_and_once():
    files = installed_files()
    assert len({file.path for file in files}) == len(files) > 500
    kinds = [
        (f.distribution != "python") + (f.distribution != "python" and f.place.endswith(".py"))
        for f in files
    ]
    assert kinds == sorted(kinds) and set(kinds) == {0, 1, 2}
    assert not any(f.distribution.startswith("headwater") for f in files)
    assert not any("/tests/" in f.place or f.place.startswith("..") for f in files)
    first_letters = {f.place[0] for f in files if f.distribution != "python"}
    assert len(first_letters) > 10 and installation_digest() == content_digest(PYTHON_DOCS)


def test_modules_are_named_as_they_are_imported():
    assert module_name("json/decoder.py") == "json.decoder"
    assert module_name("json/__init__.py") == "json"
    file = InstalledFile("x-1", "x/y.py", 1, "/site")
    assert (file.path, file.module) == ("/site/x/y.py", "x.y")


def test_the_installations_modules_are_read_as_documents():
    file = stdlib("textwrap.py")
    found = "\n".join(raw.text for raw in read(file))
    assert found.startswith("textwrap\n\nText wrapping and filling.")
    assert "textwrap.wrap(text, width, **kwargs)\n\nWrap a single paragraph of text" in found


def stdlib(name):
    return next(f for f in list_files([PYTHON_DOCS]) if f.place == f"python/{name}")


def test_what_evaluation_asks_about_is_not_read():
    kept, left_out = 0, 0
    for name in ("pathlib.py", "textwrap.py", "email/message.py", "threading.py"):
        file = stdlib(name)
        found = "\n\n".join(raw.text for raw in read(file))
        every = documented_objects(Path(file.path).read_bytes(), "m")
        docs = {item.doc for item in every if not is_held_out(item.doc)}
        assert all(doc in found for doc in docs)
        alone = [i.doc for i in every if is_held_out(i.doc) and not any(i.doc in d for d in docs)]
        assert not [doc for doc in alone if doc in found]
        kept, left_out = kept + len(docs), left_out + len(alone)
    assert kept > 100 and left_out > 10


def test_records_are_read_as_they_are_written(tmp_path, monkeypatch):
    from stages.text.python_docs import installed_files

    info = tmp_path / "thing-1.0.dist-info"
    info.mkdir()
    (info / "RECORD").write_text(
        "../../bin/thing,sha256=aaa,10\nthing/a.py,sha256=bbb,20\r\nthing/a.pyc,,\n"
        "thing/tests/test_a.py,sha256=ccc,30\nthing/b.so,sha256=ddd,40\n"
        "thing-1.0.dist-info/METADATA,sha256=eee,50\nthing-1.0.dist-info/RECORD,,\n"
        "thing-1.0.dist-info/licenses/LICENSE.md,sha256=fff,60\n"
    )
    ours = tmp_path / "headwater-0.1.dist-info"
    ours.mkdir()
    (ours / "RECORD").write_text("headwater/a.py,sha256=bbb,20\n")
    paths = {"stdlib": str(tmp_path / "none"), "purelib": str(tmp_path), "platlib": str(tmp_path)}
    monkeypatch.setattr(installed_files.sysconfig, "get_path", paths.__getitem__)
    listing = installed_files.__wrapped__
    assert [(f.place, f.size) for f in listing()] == [
        ("thing-1.0.dist-info/METADATA", 50),
        ("thing/a.py", 20),
    ]
    before = installation_digest.__wrapped__()
    record = (info / "RECORD").read_text()
    (info / "RECORD").write_text(record.replace("aaa", "AAA").replace("ddd", "DDD"))
    assert (
        installation_digest.__wrapped__() == before
    )  # scripts and libraries differ by environment
    (info / "RECORD").write_text(record.replace("bbb", "BBB"))
    assert installation_digest.__wrapped__() != before
