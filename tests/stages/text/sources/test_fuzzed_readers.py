"""Mutated bytes of valid files, in every format: no crash, counts that add up, and records that
the mutation does not touch come out unchanged."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.context import Context
from pipeline.errors import InputError
from pipeline.stage import Inputs
from stages.clean import CleanParams, clean
from stages.curation.broken_files import BrokenFile
from stages.data.documents import Documents, read_stats
from stages.text.sources.readers import RawDocument, read
from stages.text.sources.source_file import SourceFile

RECORDS = 12
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
SNIPPETS = [
    b'"',
    b"\n",
    b"\0",
    b",",
    b"\t",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"WARC/1.0\r\n",
    b"NaN",
    b"[{",
]


def text(number: int) -> str:
    return (
        f'lighthouse {number}: "wörds in quotes", and\nanother line 灯台 with its number {number}'
    )


def json_lines() -> list[bytes]:
    rows = ({"text": text(n), "n": n} for n in range(RECORDS))
    return [json.dumps(row, ensure_ascii=row["n"] == 5).encode() + b"\n" for row in rows]


def json_array() -> list[bytes]:
    first, *rest = (line.rstrip() for line in json_lines())
    return [b"[" + first, *(b",\n" + line for line in rest), b"]\n"]


def rows_of(delimiter: str) -> list[bytes]:
    stream = io.StringIO(newline="")
    writer, parts = csv.writer(stream, delimiter=delimiter, lineterminator="\n"), []
    for row in [("n", "text", "lang"), *((n, text(n), "en") for n in range(RECORDS))]:
        stream.seek(stream.truncate(0))
        writer.writerow(row)
        parts.append(stream.getvalue().encode())
    return parts


def warc_records(kind: str, head: str, foot: str) -> list[bytes]:
    parts = []
    for number in range(RECORDS):
        content = f"{head}{text(number)}, which is long enough{foot}".encode()
        header = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://a.example/{number}\r\n"
        header += f"Content-Type: application/http\r\nContent-Length: {len(content)}\r\n\r\n"
        parts.append(header.encode() + content + b"\r\n\r\n")
    return parts


def responses() -> list[bytes]:
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
    return warc_records("response", f"{head}<html><body><p>", "</p></body></html>")


def parquet() -> list[bytes]:
    stream = io.BytesIO()
    table = pa.table({"text": [text(n) for n in range(RECORDS)], "n": range(RECORDS)})
    pq.write_table(table, stream, row_group_size=4)
    return [stream.getvalue()]


LINES: dict[str, Callable[[], list[bytes]]] = {
    "a.jsonl": json_lines,
    "a.csv": lambda: rows_of(","),
    "a.tsv": lambda: rows_of("\t"),
    "a.warc": responses,
    "a.wet": lambda: warc_records("conversion", "", ""),
}
"""Formats in which the bytes of a record can be told apart: a header, if any, then the records."""
FORMATS = LINES | {
    "a.json": json_array,
    "a.parquet": parquet,
    "a.txt": lambda: [text(1).encode()],
    "a.html": lambda: [f"<html><meta charset=utf-8><p>{text(1)}</p>".encode()],
}


def mutate(chance: random.Random, data: bytes) -> tuple[bytes, int, int]:
    """The data with some bytes replaced, left out or added, and the range that changed."""
    start, size = chance.randrange(len(data)), chance.choice([1, 1, 2, 8, 40])
    end = min(start + size, len(data))
    new = chance.choice([chance.randbytes(size), b"", chance.choice(SNIPPETS)])
    end = chance.choice([start, end]) if new else end
    return data[:start] + new + data[end:], start, end


def documents(path: Path) -> list[RawDocument]:
    """All documents that can be read; a file that cannot be read any further is one, too."""
    found = []
    try:
        for raw in read(SourceFile("s", path.name, str(path), path.stat().st_size), "text", ("n",)):
            found.append(raw)
    except BrokenFile as error:
        found.append(RawDocument("", {"error": error.message}, "broken.file"))
    return found


def texts(found: Iterable[RawDocument]) -> list[str]:
    return [raw.text for raw in found if not raw.broken]


@pytest.mark.parametrize("name", LINES)
def test_untouched_records_come_out_unchanged(tmp_path: Path, name: str) -> None:
    parts, path = LINES[name](), tmp_path / name
    path.write_bytes(b"".join(parts))
    whole = texts(documents(path))
    assert len(whole) == RECORDS
    edges = [0, *accumulate(map(len, parts))]
    header = len(parts) - RECORDS
    for seed in range(120):
        data, start, end = mutate(random.Random(seed), b"".join(parts))
        if header and start <= edges[1]:
            continue
        path.write_bytes(data)
        found = documents(path)
        untouched = [
            whole[number - header]
            for number in range(header, len(parts))
            if edges[number + 1] < start or edges[number] > end
        ]
        missing = Counter(untouched) - Counter(texts(found))
        assert not missing, (seed, missing)
        assert len(texts(found)) >= RECORDS - 3, seed


PACKED = [(name, end) for name in FORMATS for end in COMPRESSIONS if name != "a.parquet" or not end]


@pytest.mark.parametrize(("name", "ending"), PACKED)
def test_damage_ends_no_reader(tmp_path: Path, name: str, ending: str) -> None:
    whole = COMPRESSIONS[ending](b"".join(FORMATS[name]()))
    path = tmp_path / (name + ending)
    refused = 0
    for seed in range(60 if not ending else 12):
        chance = random.Random(seed)
        data, *_ = mutate(chance, whole)
        path.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data) + 1)])])
        try:
            found = documents(path)
        except InputError as error:  # the header of a table, damaged
            assert "no column 'text'" in error.message
            refused += 1
            continue
        for raw in found:
            raw.text.encode()
            json.dumps(raw.meta, allow_nan=False).encode()
            assert not raw.broken or raw.broken.startswith(("broken.", "skipped."))
    assert refused < 8


def test_damage_of_one_row_group_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    (whole,) = parquet()
    path.write_bytes(whole)
    column = pq.read_metadata(path).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    groups = {n // 4 for n in range(RECORDS)} - {1}
    for seed in range(60):
        chance = random.Random(seed)
        at = start + chance.randrange(column.total_compressed_size - 4)
        path.write_bytes(whole[:at] + chance.randbytes(4) + whole[at + 4 :])
        found = documents(path)
        for group in groups:
            rows = range(4 * group, 4 * group + 4)
            assert [raw.text for raw in found if raw.meta.get("row") in rows] == [
                text(n) for n in rows
            ]


def test_every_record_of_damaged_files_is_kept_or_dropped(tmp_path: Path) -> None:
    folder, expected = tmp_path / "corpus", 0
    folder.mkdir()
    for seed in range(3):
        for name, make in LINES.items():
            data, *_ = mutate(random.Random(seed), b"".join(parts := make()))
            ending = [".gz", "", ".zst"][seed]
            header = b"" if len(parts) == RECORDS else parts[0]
            path = folder / f"{seed}-{name}{ending}"
            path.write_bytes(COMPRESSIONS[ending](data if data.startswith(header) else header))
            expected += len(documents(path))
    ctx = Context.local(tmp_path / "w")
    params = CleanParams(
        sources=(str(folder),), rules=(), dedup={"near": False, "exact": False}, meta_columns=("n",)
    )
    clean(params, Inputs({"dedup_against": []}), ctx.out, ctx)
    stats = read_stats(ctx.out)
    dropped = pq.read_table(ctx.out / "dropped").to_pylist()
    kept = len(list(Documents(ctx.out)))
    assert stats["read"]["documents"] == expected == kept + len(dropped)
    assert stats["kept"]["documents"] == kept > expected * 0.8
    by_rule = {rule: counts["documents"] for rule, counts in stats["by_rule"].items()}
    assert by_rule == Counter(row["rule"] for row in dropped) and by_rule
    results = json.loads((ctx.observed / "results.json").read_text())
    assert results["left_out"] == len(dropped)
