"""Large files in pieces: the same documents wherever they are cut, in memory for a piece."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from stages.text.cutting import pieces
from stages.text.readers import read
from stages.text.sources import SourceFile

LINES = st.sampled_from([b'{"text": "one"}', b'{"text": "two \xc3\xa9"}', b"", b" \t", b"{", b"\r"])


def file_of(path):
    return SourceFile("test", path.name, str(path), path.stat().st_size)


def numbered(files):
    return [
        (position, raw.text, raw.meta, raw.broken)
        for file in files
        for position, raw in enumerate(read(file), file.cut.records if file.cut else 0)
    ]


@given(st.lists(LINES), st.booleans(), st.integers(1, 60))
def test_lines_are_read_once_wherever_they_are_cut(tmp_path_factory, lines, ended, size):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n" * ended)
    file = file_of(path)
    cut = list(pieces(file, size))
    assert numbered(cut) == numbered([file])
    assert sum(piece.size for piece in cut) == file.size
    longest = max(map(len, lines), default=0) + 1
    assert all(piece.size < size + longest for piece in cut)


@pytest.mark.parametrize("size", [1, 400, 10**6])
def test_row_groups_are_read_once_wherever_they_are_cut(tmp_path, size):
    path = tmp_path / "a.parquet"
    texts = [f"text {i}" * i if i % 7 else None for i in range(50)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=4)
    file = file_of(path)
    cut = list(pieces(file, size))
    assert numbered(cut) == numbered([file])
    assert {1: 13, 10**6: 1}.get(size, len(cut)) == len(cut) and (len(cut) > 1) == (size < 10**6)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv", "a.txt", "broken.parquet"])
def test_what_cannot_be_read_from_the_middle_stays_whole(tmp_path, name):
    (tmp_path / name).write_bytes(b"no parquet\n" * 9)
    file = file_of(tmp_path / name)
    assert list(pieces(file, 10)) == [file]


def test_a_file_that_vanished_before_it_was_cut(tmp_path):
    with pytest.raises(InputError, match="cannot read the source"):
        list(pieces(SourceFile("test", "a.jsonl", str(tmp_path / "a.jsonl"), 99), 1))


LIMIT = 640 << 20  # bytes of data that the process may hold: texts of that file do not fit twice
CLEAN_WITHIN = """
import resource, sys
from pathlib import Path
from pipeline.context import Context
from pipeline.stage import Inputs
from stages.clean import CleanParams, clean

source, folder, limit = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
ctx = Context.local(Path(folder))
params = CleanParams(
    sources=(source,),
    rules=("length",),
    limits={"length": {"characters": [1, None]}},
    dedup={"near": False, "index": False},
)
clean(params, Inputs({"against": []}), ctx.out, ctx)
"""


@pytest.mark.integration
def test_memory_is_bounded_by_the_piece_not_by_the_file(tmp_path):
    text = "the library function returns the value of an object. " * 4000
    with (tmp_path / "a.jsonl").open("w") as lines:
        for number in range(700):
            lines.write(json.dumps({"text": f"{number} {text}"}) + "\n")
    assert (tmp_path / "a.jsonl").stat().st_size > 140e6
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_WITHIN, tmp_path / "a.jsonl", tmp_path / "w", str(LIMIT)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
