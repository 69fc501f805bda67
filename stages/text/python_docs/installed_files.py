"""The documentation that every Python installation contains: its files, in a fixed order.

Files are named by the RECORD of each installed distribution, so that only installed files are read
and their content is identified without opening them. The standard library has no RECORD: its file
sizes and the interpreter's version identify it.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import xxhash

from stages.data.hashing import hash64

OWN_DISTRIBUTION = "headwater"
STDLIB = "python"

# Modules, prose, and the description inside METADATA. Scripts in bin/ (whose hash depends on the
# environment's path), compiled files and INSTALLER files are not read.
_READ = (b".py", b".md", b".rst", b".dist-info/METADATA")
_SKIPPED_FOLDERS = {
    *("test", "tests", "testing", "idlelib", "lib2to3", "turtledemo", "pydoc_data"),
    *("site-packages", "dist-packages", "__pycache__", "node_modules"),
}
_SKIPPED_NAMES = ("test_", "conftest", "_sysconfigdata")
_LEGAL = ("license", "licence", "notice", "authors", "copying", "third_party", "thirdparty")


@dataclass(frozen=True, slots=True, order=True)
class InstalledFile:
    """A file of the standard library or of an installed distribution."""

    distribution: str
    """`python` for the standard library, else `name-version`."""
    place: str
    """Path below the folder of the library or site, with forward slashes."""
    size: int
    """Size, bytes."""
    root: str
    """Folder that `place` is relative to; the only field that differs between machines."""

    @property
    def path(self) -> str:
        """The absolute path."""
        return f"{self.root}/{self.place}"

    @property
    def module(self) -> str:
        """The dotted name of a module's file."""
        return module_name(self.place)


def module_name(place: str) -> str:
    """Return the dotted name of a module's file: `json.decoder` for `json/decoder.py`, `json` for
    `json/__init__.py`."""
    return place.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def installed_files() -> tuple[InstalledFile, ...]:
    """Return every file that documents the running interpreter, in a fixed order.

    The standard library comes first, then prose, then the modules of packages; each group is sorted
    by a hash of the name, so that a limit on the corpus takes a representative sample.
    """
    library = sysconfig.get_path("stdlib")
    found = [InstalledFile(STDLIB, place, size, library) for place, size in _stdlib(library)]
    for record in _records():
        root, distribution = str(record.parent.parent), record.parent.name
        for line in _record_lines(record):
            place, _, size = line.decode(errors="replace").split(",")
            if not _is_skipped(place):
                name = distribution.removesuffix(".dist-info")
                found.append(InstalledFile(name, place, int(size), root))
    return tuple(sorted({file.path: file for file in found}.values(), key=_sort_key))


def installation_digest() -> str:
    """Return what identifies the documentation of this installation: version, names and hashes.

    Only RECORD files are opened, because `headwater plan` calls this. It is not cached: a package
    that is installed while a stage reads changes it.
    """
    state = xxhash.xxh3_128(repr((sys.implementation.name, sys.version_info[:5])).encode())
    state.update(repr(sorted(_stdlib(sysconfig.get_path("stdlib")))).encode())
    for record in _records():
        state.update(record.parent.name.encode() + b"\0")
        state.update(b"\n".join(sorted(_record_lines(record))))
    return state.hexdigest()


def _sort_key(file: InstalledFile) -> tuple[int, int, str]:
    kind = 0 if file.distribution == STDLIB else 2 if file.place.endswith(".py") else 1
    return kind, hash64(f"{file.distribution}/{file.place}"), file.place


def _records() -> Iterator[Path]:
    for root in sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}):
        for record in sorted(Path(root).glob("*.dist-info/RECORD")):
            if record.parent.name.split("-", 1)[0].lower() != OWN_DISTRIBUTION:
                yield record


def _record_lines(record: Path) -> Iterator[bytes]:
    """Yield the lines `path,sha256=…,size` of the files to read."""
    for line in record.read_bytes().split(b"\n"):
        place, _, rest = line.partition(b",")
        if place.endswith(_READ) and rest.startswith(b"sha256=") and not place.startswith(b".."):
            yield line.rstrip()


def _stdlib(root: str) -> Iterator[tuple[str, int]]:
    """Yield place and size of the library's modules, without entering the folders of tests."""
    for folder, below, names in os.walk(root):
        below[:] = [
            name
            for name in below
            if name not in _SKIPPED_FOLDERS and not name.startswith(("config-", "_test"))
        ]
        for name in names:
            path = f"{folder}/{name}"
            place = path[len(root) + 1 :]
            if name.endswith(".py") and not _is_skipped(place):
                yield place, os.stat(path).st_size  # noqa: PTH116


def _is_skipped(place: str) -> bool:
    *folders, name = place.split("/")
    return (
        not _SKIPPED_FOLDERS.isdisjoint(folders)
        or name.startswith(_SKIPPED_NAMES)
        or name.endswith("_test.py")
        or name.lower().startswith(_LEGAL)
    )
