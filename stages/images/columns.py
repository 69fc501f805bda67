"""The fields of records that hold images, captions and metadata."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import InputError

IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_name", "path", "file")
CAPTION_COLUMNS = ("caption", "captions", "text", "title")


@dataclass(frozen=True, slots=True)
class ImageColumns:
    """Names of the fields that are read; those left open take the names that a record has."""

    image: str | None = None
    """Field of the image's path; None takes the first of `IMAGE_COLUMNS` that exists."""
    captions: tuple[str, ...] = ()
    """Fields of captions; empty takes the first of `CAPTION_COLUMNS` that exists."""
    meta: tuple[str, ...] = ()
    """Fields of manifests to keep as metadata; tars and folders keep all."""
    root: str | None = None
    """Folder that paths in manifests are relative to; None is the manifest's own."""

    def with_defaults(self, names: tuple[str, ...]) -> ImageColumns:
        """Return the same with open names taken from the names of a record."""
        image = self.image or next((name for name in IMAGE_COLUMNS if name in names), "image")
        captions = self.captions or tuple(n for n in CAPTION_COLUMNS if n in names)[:1]
        return ImageColumns(image, captions, self.meta, self.root)

    def resolve(self, names: tuple[str, ...], where: str) -> ImageColumns:
        """Return the same with open names taken from the header of a manifest.

        Raises:
            InputError: the manifest at `where` lacks a column.
        """
        found = self.with_defaults(names)
        captions = found.captions or CAPTION_COLUMNS[:1]
        for key, name in (
            ("image_column", found.image),
            *(("caption_columns", n) for n in captions),
        ):
            if name not in names:
                known = ", ".join(names) or "a header line"
                remedy = f"set {key} to one of {known}"
                raise InputError(f"no column {name!r}", where=where, remedy=remedy)
        return found
