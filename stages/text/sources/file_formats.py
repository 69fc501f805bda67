"""Formats of text files by the ending of their names, and what compresses them."""

from __future__ import annotations

TEXTS = (".txt", ".md", ".rst", ".html", ".htm")
"""One document per file."""
RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Records with fields."""
ARCHIVES = (".warc", ".wet")
"""Records of a crawler."""
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
"""Parquet files are compressed inside."""
KNOWN = (
    f"known endings are {' '.join((*TEXTS, *RECORDS, *ARCHIVES))}, and all but .parquet also with "
    f"{' '.join(COMPRESSIONS)}"
)


def file_format(name: str) -> str:
    """Return the format of a file: one of the endings above; empty for another one."""
    name = name.lower()
    plain = name.removesuffix(compression(name))
    known = next((end for end in (*TEXTS, *RECORDS, *ARCHIVES) if plain.endswith(end)), "")
    return "" if known == ".parquet" and plain != name else known


def compression(name: str) -> str:
    """Return the ending that names a file's compression; empty for an uncompressed file."""
    return next((end for end in COMPRESSIONS if name.lower().endswith(end)), "")
