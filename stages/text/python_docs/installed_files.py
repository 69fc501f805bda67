"""The documentation that every Python installation carries: which files, in which order.

Files are named by the RECORD of each installed distribution, so that only what was installed is
read, and their content is known by the hashes in it without opening them. The standard library
has no RECORD: its file sizes and the interpreter's version stand for it.
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

# Modules, prose, and the description inside METADATA. Scripts in bin/ (their hash holds the
# environment's path), compiled files and INSTALLER marks are not read.
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
    """Its path below the library's or the site's folder, with forward slashes."""
    size: int
    """Bytes."""
    root: str
    """The folder that `place` is below; the only thing here that differs between machines."""

    @property
    def path(self) -> str:
        """Where the file is."""
        return f"{self.root}/{self.place}"

    @property
    def module(self) -> str:
        """The dotted name of a module's file."""
        return module_name(self.place)


def module_name(place: str) -> str:
    """The dotted name of a module's file: `json.decoder` for `json/decoder.py`, `json` for
    `json/__init__.py`."""
    return place.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def installed_files() -> tuple[InstalledFile, ...]:
    """Every file that documents the running interpreter, in a fixed order.

    The standard library first, then prose, then the modules of packages; within each by a hash of
    its name, so that a cap on the corpus takes a fair sample rather than the letter A.
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


@cache
def digest() -> str:
    """What identifies the documentation of this installation: version, names and hashes.

    No file but the RECORDs is opened: `headwater plan` calls this.
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
    """The lines `path,sha256=…,size` of files that are read."""
    for line in record.read_bytes().split(b"\n"):
        place, _, rest = line.partition(b",")
        if place.endswith(_READ) and rest.startswith(b"sha256=") and not place.startswith(b".."):
            yield line.rstrip()


def _stdlib(root: str) -> Iterator[tuple[str, int]]:
    """Place and size of the library's modules, tests left out without being listed."""
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
