"""A file of a text source, whole or in part: what listing yields and readers take."""

from __future__ import annotations

from dataclasses import dataclass

from stages.curation.source_piece import SourcePiece
from stages.text.sources import fsspec_files


@dataclass(frozen=True, slots=True)
class FilePart:
    """A contiguous part of a file."""

    start: int
    """First byte, row group, row or shard, depending on the format."""
    end: int
    """One past the last; of a streamed dataset, the number of its shards."""
    records_before: int
    """Documents of the file before the part."""
    lines_before: int
    """Lines, or rows, of the file before the part."""
    encoding: str = ""
    """Codec of the lines of the file; empty if those of the part are ASCII."""


@dataclass(frozen=True, slots=True)
class SourceFile(SourcePiece):
    """A file that holds documents, or a part of one; messages use `display_path`."""

    part: FilePart | None = None
    """Part to read; None reads all of it."""

    @property
    def is_remote(self) -> bool:
        """True if `path` is a URL."""
        return fsspec_files.is_url(self.path)

    @property
    def is_dataset(self) -> bool:
        """True if it is a part of a Hugging Face dataset."""
        return self.path.startswith("hf:")

    @property
    def first_record(self) -> int:
        """Position in the file of the first record to read."""
        return self.part.records_before if self.part else 0

    @property
    def display_path(self) -> str:
        """The path without secrets, for messages."""
        return fsspec_files.redact_urls(self.path) if self.is_remote else self.path
