"""Formats of text files by the ending of their names, and what compresses them."""

from __future__ import annotations

from dataclasses import dataclass

TEXTS = (".txt", ".md", ".rst", ".html", ".htm")
"""One document per file."""
RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Records with fields."""
ARCHIVES = (".warc", ".wet")
"""Records of a crawler."""
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
"""Parquet files are compressed inside."""


@dataclass(frozen=True, slots=True)
class FileFormats:
    """The formats that a stage reads."""

    endings: tuple[str, ...]

    def accepts(self, name: str) -> bool:
        """Return whether a file of this name is read."""
        return file_format(name) in self.endings

    @property
    def remedy(self) -> str:
        """The remedy where a source has no such file."""
        compressed = f"and all but .parquet also with {' '.join(COMPRESSIONS)}"
        return f"known endings are {' '.join(self.endings)}, {compressed}"


ALL_FORMATS = FileFormats((*TEXTS, *RECORDS, *ARCHIVES))
RECORD_FORMATS = FileFormats(RECORDS)


def file_format(name: str) -> str:
    """Return the format of a file: one of the endings above; empty for another one."""
    name = name.lower()
    plain = name.removesuffix(compression(name))
    known = next((end for end in ALL_FORMATS.endings if plain.endswith(end)), "")
    return "" if known == ".parquet" and plain != name else known


def compression(name: str) -> str:
    """Return the ending that names a file's compression; empty for an uncompressed file."""
    return next((end for end in COMPRESSIONS if name.lower().endswith(end)), "")
