"""Readers of every format, and what is wrong with a file."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.errors import InputError
from stages.curation.broken_files import BrokenFile
from stages.text.python_docs.docstrings import documented_objects
from stages.text.python_docs.holdout import is_held_out
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
    assert found[0] == RawDocument("one, or\ntwo", {"line": 2})
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
        ("café au lait".encode("latin-1"), "café au lait"),
        ("У реки стоит старая мельница".encode("koi8-r"), "У реки стоит старая мельница"),
        ("河边有一座古老的磨坊。".encode("gb18030"), "河边有一座古老的磨坊。"),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".md", ".rst"])
def test_whole_files_in_any_encoding(tmp_path, data, text, suffix):
    (tmp_path / f"a{suffix}").write_bytes(data)
    assert texts(tmp_path / f"a{suffix}") == [text]


MILL = ["河边有一座古老的磨坊，", "清晨的集市上人来人往。", "plain"]
WIDE = ["utf-8-sig", "utf-16", "utf-16-be", "gb18030"]


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson.gz", "a.json", "a.csv", "a.tsv.xz"])
def test_records_in_any_encoding(tmp_path, name, encoding):
    values = [json.dumps({"id": "1", "text": text}, ensure_ascii=False) for text in MILL]
    between = "\t" if ".tsv" in name else ","
    text = "\n".join(values)
    if name == "a.json":
        text = f"[{','.join(values)}]"
    elif "sv" in name:
        text = "".join(f"{a}{between}{b}\r\n" for a, b in [("id", "text"), *enumerate(MILL)])
    pack = {"gz": gzip.compress, "xz": lzma.compress}.get(name.rsplit(".")[-1], bytes)
    (tmp_path / name).write_bytes(pack(text.encode(encoding)))
    assert texts(tmp_path / name) == MILL


def test_a_csv_in_latin_1(tmp_path):
    text = "Au printemps, l'élève traverse la forêt près de la rivière."
    (tmp_path / "a.csv").write_bytes(f'id,text\n1,"{text}"\n'.encode("latin-1"))
    assert texts(tmp_path / "a.csv") == [text]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_an_undecodable_record_costs_itself(tmp_path, name, encoding):
    rows = [text.encode(encoding) for text in [*MILL, "X", *MILL]]
    if name == "a.csv":
        data = b"id,text\n" + b"".join(b"1," + row + b"\n" for row in rows)
        place = {"line": 5, "error": "text: byte 0xff at character 0 is not "}
    else:
        data = b"".join(b'{"text": "' + row + b'"}\n' for row in rows)
        place = {"line": 4, "error": "byte 0xff at character 10 is not "}
    (tmp_path / name).write_bytes(data.replace(b"X", b"\xff damaged"))
    found = list(read(file_of(tmp_path / name)))
    assert [raw.text for raw in found if not raw.broken] == MILL * 2
    (broken,) = [raw for raw in found if raw.broken]
    place["error"] += encoding.upper()
    assert (broken.broken, broken.meta) == ("broken.encoding", place)
    assert "\\xff damaged" in broken.text


def test_an_undecodable_array_keeps_what_precedes_the_damage(tmp_path):
    data = json.dumps([{"text": text} for text in MILL], ensure_ascii=False).encode()
    (tmp_path / "a.json").write_bytes(data.replace(b"plain", b"pl\xffin"))
    found = []
    with pytest.raises(BrokenFile, match=r"byte 0xff at character \d+ is not UTF-8"):
        found.extend(raw.text for raw in read(file_of(tmp_path / "a.json")))
    assert found == MILL[:2]


@pytest.mark.parametrize("suffix", [".txt", ".md", ".rst", ".html"])
def test_a_damaged_text_is_a_broken_record(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes("Une forêt près de la rivière, ".encode() * 3 + b"et un \xe9cran")
    (raw,) = read(file_of(path))
    assert (raw.broken, raw.meta) == (
        "broken.encoding",
        {"error": "byte 0xe9 at 105 is not UTF-8"},
    )
    assert raw.text.endswith("et un \\xe9cran")


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


def test_what_is_not_csv_is_a_broken_file(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00,\xff\n1,2\n")
    with pytest.raises(BrokenFile, match="its content is binary"):
        texts(tmp_path / "a.csv")


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf", b"id,text\n", b"id,text"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_table_without_rows_has_no_records(tmp_path, data, name):
    (tmp_path / name).write_bytes(data.replace(b",", b"\t") if name.endswith("tsv") else data)
    assert texts(tmp_path / name) == []


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


ENDINGS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
ENDINGS |= {".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.ndjson", LINES),
        ("a.json", LINES),
        ("a.json", b'[{"text": "one"},\n {"text": "two", "n": [1]}]'),
        ("a.tsv", b"n\ttext\n1\tone\n2\ttwo\n"),
    ],
)
def test_every_format_is_read_in_every_compression(tmp_path, name, data, ending):
    path = tmp_path / (name + ending)
    path.write_bytes(ENDINGS[ending](data))
    assert texts(path) == ["one", "two"]


def test_a_json_file_holds_one_record_or_an_array(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{\n  "text": "one",\n  "n": 1\n}\n')
    assert texts(path) == ["one"]
    path.write_text('[{"text": "one"}, 7, {"text": "two"}, {"text')
    found = []
    with pytest.raises(BrokenFile, match="not JSON"):
        for raw in read(file_of(path)):
            found.append(raw)  # what precedes the error counts
    assert [(raw.text, raw.broken) for raw in found] == [
        ("one", ""),
        ("7", "broken.text_column"),
        ("two", ""),
    ]


def test_json_of_other_programs(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "a number without value", "rate": NaN, "deep": {"x": [-Infinity, 1]}}\n'
        '{"text": "half an emoji \\ud83d", "rate": 1e999}\n'
        '{"text": "a whole one \\ud83d\\ude00", "title": "\\udc00"}\n' + "[" * 3000 + "\n"
    )
    meta = ("rate", "deep", "title")
    found = list(read(file_of(path), meta_columns=meta))
    assert [raw.text for raw in found[:3]] == [
        "a number without value",
        "half an emoji \ufffd",
        "a whole one \U0001f600",
    ]
    assert found[0].meta == {"line": 1, "deep": {"x": [None, 1]}}
    assert found[1].meta == {"line": 2} and found[2].meta["title"] == "\ufffd"
    assert found[3].broken == "broken.json" and "deep" in found[3].meta["error"]


def test_lists_of_texts_are_joined_in_every_format(tmp_path):
    rows = [["one", "two"], ["three", 4], [], "four"]
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    expected = [("one\ntwo", ""), ("", ""), ("four", "")]
    found = [(raw.text, raw.broken) for raw in read(file_of(tmp_path / "a.jsonl"))]
    assert found[:1] + found[2:] == expected and found[1][1] == "broken.text_column"
    pq.write_table(pa.table({"text": [["one", "two"], None, []]}), tmp_path / "a.parquet")
    found = [(raw.text, raw.broken) for raw in read(file_of(tmp_path / "a.parquet"))]
    assert found == [expected[0], ("", "broken.text_column"), expected[1]]


def unchecked(values, kind):
    """An Arrow column of bytes that calls itself text."""
    edges = np.cumsum([0, *map(len, values)]).astype(np.int32)
    return pa.Array.from_buffers(
        kind, len(values), [None, pa.py_buffer(edges.tobytes()), pa.py_buffer(b"".join(values))]
    )


@pytest.mark.parametrize("kind", [pa.string(), pa.binary()])
@pytest.mark.parametrize("column", ["text", "url"])
def test_a_value_that_is_not_utf8_costs_its_row(tmp_path, kind, column):
    good = [f"row {number} é".encode() for number in range(3000)]
    values = {"text": list(good), "url": list(good)}
    values[column][1500] = b"\xe9t\xe9"
    table = {name: unchecked(data, kind) for name, data in values.items()}
    pq.write_table(pa.table(table), tmp_path / "a.parquet", row_group_size=1000)
    found = list(read(file_of(tmp_path / "a.parquet"), meta_columns=("url",)))
    (broken,) = (raw for raw in found if raw.broken)
    assert broken.broken == "broken.encoding"
    assert broken.meta["row"] == 1500 and broken.meta["error"].startswith(f"{column}: ")
    whole = [(raw.text, raw.meta["url"], raw.meta["row"]) for raw in found if not raw.broken]
    texts = [(text.decode(), text.decode(), row) for row, text in enumerate(good) if row != 1500]
    assert whole == texts


def test_a_damaged_row_group_costs_its_rows(tmp_path):
    path = tmp_path / "a.parquet"
    values = [f"row {number} " * 9 for number in range(300)]
    pq.write_table(
        pa.table({"text": values}),
        path,
        row_group_size=100,
        use_dictionary=False,
        compression="zstd",
    )
    column = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle : middle + 60] = bytes(60)
    path.write_bytes(data)
    found = list(read(file_of(path)))
    assert [raw.text for raw in found if not raw.broken] == values[:100] + values[200:]
    (broken,) = (raw for raw in found if raw.broken)
    assert broken.broken == "broken.file" and "rows 100 to 199" in broken.meta["error"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_value_that_is_nested_too_deeply_costs_its_record(tmp_path, name):
    path = tmp_path / name
    deep = "[" * 1000 + "]" * 1000
    rows = [f'{{"text": "one", "m": {deep}}}', '{"text": "two", "m": [[1]]}']
    path.write_text("\n".join(rows) if name == "a.jsonl" else f"[{','.join(rows)}]")
    broken, whole = read(file_of(path), meta_columns=("m",))
    assert (broken.broken, broken.meta["error"]) == (
        "broken.value",
        "m: it is nested too deeply",
    )
    assert (whole.text, whole.meta["m"], whole.broken) == ("two", [[1]], "")
