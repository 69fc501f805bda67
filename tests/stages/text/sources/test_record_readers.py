"""Records with all their fields, whatever the format of the file."""

import bz2
import csv
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from stages.curation.broken_files import BrokenFile
from stages.text.sources.record_readers import AllFields, RecordFields, read_records
from stages.text.sources.source_file import SourceFile

ROWS = [{"question": f"q {i}", "answer": f"a, {i}", "rank": str(i)} for i in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def write_table(path, delimiter):
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(ROWS[0]), delimiter=delimiter)
        table.writeheader()
        table.writerows(ROWS)


def compress_zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


WRITERS = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "a.ndjson": lambda path: path.write_bytes(LINES),
    "a.json": lambda path: path.write_text(json.dumps(ROWS)),
    "a.csv": lambda path: write_table(path, ","),
    "a.tsv": lambda path: write_table(path, "\t"),
    "a.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "a.jsonl.zst": lambda path: path.write_bytes(compress_zstd(LINES)),
    "a.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(LINES)),
    "a.jsonl.xz": lambda path: path.write_bytes(lzma.compress(LINES)),
}


def source(path):
    return SourceFile("test", path.name, str(path), path.stat().st_size)


@pytest.mark.parametrize("name", WRITERS)
def test_all_fields_of_a_record_are_read_in_every_format(tmp_path, name):
    WRITERS[name](tmp_path / name)
    records = list(read_records(source(tmp_path / name), AllFields()))
    assert [dict(record.values) for record in records] == ROWS
    assert not any(record.broken for record in records)


def test_all_fields_of_a_dataset_are_read(tmp_path):
    import datasets

    from stages.text.sources.source_listing import list_files

    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    (file,) = list_files([f"hf:{tmp_path / 'saved'}"])
    assert [dict(record.values) for record in read_records(file, AllFields())] == ROWS


def test_a_table_without_the_named_fields_has_all_fields(tmp_path):
    write_table(tmp_path / "a.csv", ",")
    file = source(tmp_path / "a.csv")
    with pytest.raises(InputError, match="no column 'text'"):
        list(read_records(file, RecordFields(("text",))))
    assert len(list(read_records(file, AllFields()))) == 5


def test_damage_is_found_whatever_the_fields(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\x00\x01\x02binary\nx\n")
    with pytest.raises(BrokenFile, match="binary"):
        list(read_records(source(tmp_path / "a.csv"), AllFields()))
    (tmp_path / "b.csv").write_text("one,two\na,b\nc,d,e\nf,g\n")
    records = list(read_records(source(tmp_path / "b.csv"), AllFields()))
    assert [record.broken for record in records] == ["", "broken.columns", ""]
