"""Large files in pieces: the same documents wherever they are cut, in memory for a piece."""

import json
import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from stages.curation.broken_files import BrokenFile
from stages.data.documents import read_stats
from stages.text.sources.file_splitting import split_file
from stages.text.sources.readers import read
from stages.text.sources.source_file import SourceFile

LINES = st.sampled_from([b'{"text": "one"}', b'{"text": "two \xc3\xa9"}', b"", b" \t", b"{", b"\r"])


def file_of(path):
    return SourceFile("test", path.name, str(path), path.stat().st_size)


def numbered(files):
    return [
        (position, raw.text, raw.meta, raw.broken)
        for file in files
        for position, raw in enumerate(read(file), file.first_record)
    ]


@given(st.lists(LINES), st.booleans(), st.integers(1, 60))
def test_lines_are_read_once_wherever_they_are_cut(tmp_path_factory, lines, ended, size):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n" * ended)
    file = file_of(path)
    cut = list(split_file(file, size))
    assert numbered(cut) == numbered([file])
    assert sum(piece.size for piece in cut) == file.size
    longest = max(map(len, lines), default=0) + 1
    assert all(piece.size < size + longest for piece in cut)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "gb18030"])
@pytest.mark.parametrize("size", [1, 100, 3000])
def test_parts_have_the_encoding_of_their_file(tmp_path, encoding, size):
    texts = ["plain", *["河边有一座古老的磨坊，清晨的集市上人来人往。", "猫", "\u0a0a"] * 20]
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_bytes("\n".join(lines).encode(encoding))
    found = numbered(split_file(file_of(path), size))
    assert found == [(at, text, {"line": at + 1}, "") for at, text in enumerate(texts)]


@pytest.mark.parametrize("size", [1, 400, 10**6])
def test_row_groups_are_read_once_wherever_they_are_cut(tmp_path, size):
    path = tmp_path / "a.parquet"
    texts = [f"text {i}" * i if i % 7 else None for i in range(50)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=4)
    file = file_of(path)
    cut = list(split_file(file, size))
    assert numbered(cut) == numbered([file])
    assert {1: 13, 10**6: 1}.get(size, len(cut)) == len(cut) and (len(cut) > 1) == (size < 10**6)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv", "a.txt", "broken.parquet"])
def test_what_cannot_be_read_from_the_middle_stays_whole(tmp_path, name):
    (tmp_path / name).write_bytes(b"no parquet\n" * 9)
    file = file_of(tmp_path / name)
    assert list(split_file(file, 10)) == [file]


def test_a_column_whose_name_is_not_utf8_is_a_broken_file(tmp_path):
    """Check that the plan of a parquet file survives it, and that its reader names it."""
    path = tmp_path / "names.parquet"
    pq.write_table(pa.table({"text": ["a"], "other": ["b"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"other", b"o\xffher"))
    (whole,) = split_file(file_of(path), 1)
    with pytest.raises(BrokenFile, match="not a parquet file"):
        list(read(whole, "text"))


def test_a_file_that_vanished_before_it_was_cut(tmp_path):
    with pytest.raises(InputError, match="cannot read the source"):
        list(split_file(SourceFile("test", "a.jsonl", str(tmp_path / "a.jsonl"), 99), 1))


COMMON = "the of and to that have with be library function returns value object file"
LIMIT = 640 << 20  # bytes of data that the process may hold: texts of that file do not fit twice
CLEAN_WITHIN = """
import json, resource, sys
from pathlib import Path
from pipeline.context import Context
from pipeline.stage import Inputs
from stages.clean import CleanParams, clean

source, folder, limit, options = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
ctx = Context.local(Path(folder))
params = CleanParams(sources=(source,), **json.loads(options))
clean(params, Inputs({"dedup_against": []}), ctx.out, ctx)
"""


def clean_within(limit, source, folder, **options):
    """Clean in a process that may hold so much data."""
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_WITHIN, source, folder, str(limit), json.dumps(options)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.integration
def test_memory_is_bounded_by_the_piece_not_by_the_file(tmp_path):
    text = "the library function returns the value of an object. " * 4000
    with (tmp_path / "a.jsonl").open("w") as lines:
        for number in range(700):
            lines.write(json.dumps({"text": f"{number} {text}"}) + "\n")
    assert (tmp_path / "a.jsonl").stat().st_size > 140e6
    limits = {"length": {"characters": [1, None]}}
    dedup = {"near": False, "save_index": False}
    options = {"rules": ["length"], "limits": limits, "dedup": dedup}
    clean_within(LIMIT, tmp_path / "a.jsonl", tmp_path / "w", **options)


@pytest.mark.long
def test_an_input_larger_than_memory_is_cleaned(tmp_path):
    """All that the stage does by default, with one process for all of it."""
    chance = random.Random(7)
    words = COMMON.split()
    with (tmp_path / "a.jsonl").open("w") as lines:
        while lines.tell() < LIMIT * 1.2:
            sentences = (" ".join(chance.choices(words, k=12)).capitalize() for _ in range(70))
            lines.write(json.dumps({"text": f"{chance.random()} {'. '.join(sentences)}."}) + "\n")
    clean_within(LIMIT, tmp_path / "a.jsonl", tmp_path / "w", rules=["length", "gopher_quality"])
    stats = read_stats(tmp_path / "w" / "out")
    assert stats["kept"]["characters"] > LIMIT
