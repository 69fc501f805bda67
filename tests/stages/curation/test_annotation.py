"""Annotation numbers records within their file, and a broken file ends with a row of its own."""

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.context import Context
from pipeline.stage import Workers
from stages.curation.annotation import Annotator, run_annotation
from stages.curation.broken_files import BrokenFile
from stages.curation.source_piece import SourcePiece, list_pieces


@dataclass(frozen=True, slots=True)
class Words(SourcePiece):
    first: int = 0

    @property
    def first_record(self):
        return self.first


@dataclass(frozen=True)
class WordAnnotator(Annotator[Words, str]):
    payload_column: ClassVar[str] = "word"
    schema: ClassVar[pa.Schema] = pa.schema([("number", pa.int64()), ("word", pa.string())])

    def read(self, piece):
        for word in piece.path.split():
            if word == "!":
                raise BrokenFile("truncated", where=piece.path)
            yield word

    def broken_record(self, piece, error):
        return f"broken: {error.message}"

    def annotate(self, piece, number, record):
        return {"number": number, "word": record}


def test_a_broken_file_ends_with_its_reason_and_the_next_one_is_read(tmp_path):
    pieces = [Words("s", "a", "one two ! three", 15, first=7), Words("s", "b", "four", 4)]
    ctx = Context.local(tmp_path)
    seen = []
    commits = run_annotation(
        WordAnnotator(),
        [pieces, [Words("s", "c", "!", 1)]],
        ctx,
        Workers(),
        on_commit=lambda index, commit: seen.append((index, commit)),
    )
    assert seen == list(enumerate(commits))
    first, second = (pq.read_table(commit).to_pylist() for commit in commits)
    rows = [(row["number"], row["word"]) for row in first]
    assert rows == [(7, "one"), (8, "two"), (9, "broken: truncated"), (0, "four")]
    assert second == [{"number": 0, "word": "broken: truncated"}]
    assert "annotated 5 records" in (ctx.attempt_dir / "log.txt").read_text()


def test_pieces_know_the_position_of_their_source():
    found = list_pieces(("x", "y"), lambda source: [Words(source, "a", ""), Words(source, "b", "")])
    assert [(p.source, p.place, p.origin) for p in found] == [
        *(("x", "a", 0), ("x", "b", 0)),
        *(("y", "a", 1), ("y", "b", 1)),
    ]
    assert SourcePiece("x", "a", "").first_record == 0
