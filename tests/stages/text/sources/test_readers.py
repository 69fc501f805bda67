"""Readers of every format, and what is wrong with a file."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.errors import InputError
from stages.curation.broken_files import BrokenFile
from stages.text.python_docs.docstrings import documented_objects
from stages.text.python_docs.holdout import is_held_out
from stages.text.sources import readers
from stages.text.sources.readers import RawDocument, read
from stages.text.sources.source_file import SourceFile
from stages.text.sources.source_listing import PYTHON_DOCS, list_files

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


def test_broken_records_are_marked(tmp_path):
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
def test_damaged_files_are_input_errors(tmp_path, name):
    long = b'{"text": "' + bytes(range(97, 123)) * 4000 + b'"}\n'
    whole = {"gz": gzip.compress(long), "zst": zstandard.compress(long)}
    data = whole.get(name.rsplit(".")[-1], b"PAR1 not really")
    (tmp_path / name).write_bytes(data[: len(data) // 2] if "cut" in name else b"junk" + data)
    with pytest.raises(InputError) as caught:
        texts(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00,\xff\n1,2\n", "its content is binary"),
        (b'text\none\n"' + b"x" * 2000 + b"\n", "line 2: field larger than"),
    ],
)
def test_what_is_not_csv_is_a_broken_file(tmp_path, data, message, monkeypatch):
    monkeypatch.setattr(readers, "MAX_FIELD", 1_000)
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(BrokenFile, match=message):
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


def test_the_installations_modules_are_read_as_documents():
    file = stdlib("textwrap.py")
    found = "\n".join(raw.text for raw in read(file))
    assert found.startswith("textwrap\n\nText wrapping and filling.")
    assert "textwrap.wrap(text, width, **kwargs)\n\nWrap a single paragraph of text" in found


def stdlib(name):
    return next(f for f in list_files([PYTHON_DOCS]) if f.place == f"python/{name}")


def test_held_out_objects_are_not_read():
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
