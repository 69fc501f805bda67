"""Garbage collection of a store: removes what neither a kept run nor a model alias can reach.

Kept are the artifacts and unfinished work of the newest runs and of running ones, of the last
promotions of each alias, and everything that those were made from. Anything that cannot be read
stops the collection: what is not provably unreachable is kept.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.atomic_io import disk_errors, list_folder, list_subfolders, move_folder, read_lines
from pipeline.checksum import parse_record
from pipeline.errors import CorruptArtifact, Failure
from pipeline.storage.artifact import Artifact
from pipeline.storage.store import Store

KEPT_PROMOTIONS = 5  # per alias, so that a rollback finds its model

Fingerprint = tuple[str, str]  # uses, fp


@dataclass(frozen=True)
class Garbage:
    """A path that no kept run or alias can reach."""

    path: Path
    size: int
    """Bytes on disk."""
    why: str

    @classmethod
    def at(cls, path: Path, why: str) -> Garbage:
        """Measure what is at a path."""
        size = 0
        for parent, _, names in os.walk(path):
            for name in names:
                with suppress(FileNotFoundError):  # another process is deleting it
                    size += (Path(parent) / name).lstat().st_size
        return cls(path, size, why)


@dataclass
class GcReport:
    """The result of a collection; nothing is removed if it was dry."""

    dry: bool
    garbage: list[Garbage] = field(default_factory=list)
    kept: int = 0
    """Number of artifacts that are kept."""

    @property
    def size(self) -> int:
        """The bytes of the garbage."""
        return sum(item.size for item in self.garbage)


def collect_garbage(store: Store, keep: int = 10, dry: bool = True) -> GcReport:
    """Find garbage and, unless `dry`, remove it.

    Args:
        keep: the number of newest runs to keep.

    Raises:
        Failure: a plan, a promotion log or an artifact cannot be read; nothing was removed.
    """
    with disk_errors(store.root):
        report = _find(store, keep, dry)
        if not dry:
            for item in report.garbage:
                _discard(store, item.path)
            _remove_stale_records(store)
    return report


def _find(store: Store, keep: int, dry: bool) -> GcReport:
    report = GcReport(dry)
    wanted = _reachable(store, keep)
    found: list[tuple[Path, str]] = []
    for folder in store.folders():
        if (folder.parent.name, folder.name[:16]) in wanted:
            report.kept += 1
        else:
            found.append((folder, "no kept run or alias reaches it"))
    for folder in list_subfolders(store.root / "work"):
        name = (folder.parent.name, folder.name)
        leased = store.lease(*name, owner="gc").alive()
        if not leased and (name not in wanted or store.latest_readable(*name)):
            found.append((folder, "unfinished work of no kept run"))
    damaged = filter(Path.is_dir, list_subfolders(store.root / "quarantine"))
    found += [(path, "damaged") for path in damaged]
    cached = [path for path in list_folder(store.root / "cache") if path.name != "verified"]
    found += [(path, "stages can make it again") for path in cached]
    found += [(path, "its deletion was interrupted") for path in list_folder(store.root / "tmp")]
    report.garbage += [Garbage.at(path, why) for path, why in found]
    return report


def _reachable(store: Store, keep: int) -> set[Fingerprint]:
    """Return what the kept runs and aliases refer to, and everything that those were made from."""
    runs = list_folder(store.root / "runs")
    kept = runs[len(runs) - keep :] if keep < len(runs) else runs
    alive = [run for run in runs if store.lease("run", run.name, owner="gc").alive()]
    wanted: set[Fingerprint] = set()
    for run in {*kept, *alive}:
        with suppress(FileNotFoundError):  # a run that is being created has no plan
            plan = _parse((run / "plan.json").read_bytes(), run / "plan.json")
            wanted.update(_references_in(plan))
    for model in list_folder(store.root / "registry"):
        wanted.update(_promoted(store, model / "promotions.jsonl"))
    frontier = list(wanted)
    while frontier:
        for folder in store.generations(*frontier.pop()):
            with suppress(CorruptArtifact):
                new = set(_references_in(Artifact.read(folder).manifest["inputs"])) - wanted
                wanted |= new
                frontier += new
    return wanted


def _promoted(store: Store, log: Path) -> Iterator[Fingerprint]:
    """Yield the artifacts of the last promotions of each alias of a model."""
    lines = [_parse(line, log) for line in read_lines(log)]
    for alias in {line.get("alias") for line in lines}:
        promotions = [line for line in lines if line.get("alias") == alias]
        for line in promotions[-KEPT_PROMOTIONS:]:
            fp = str(line.get("fingerprint"))
            yield from ((f.parent.name, fp) for f in store.folders() if f.name[:16] == fp)


def _parse(text: bytes, path: Path) -> Any:
    try:
        return parse_record(text)
    except ValueError:
        remedy = "restore it or move it away; nothing was removed"
        raise Failure("unreadable", where=str(path), remedy=remedy) from None


def _references_in(value: Any) -> Iterator[Fingerprint]:
    """Yield every (uses, fingerprint) in a JSON value, at any depth."""
    if isinstance(value, Mapping):
        if isinstance(value.get("uses"), str) and isinstance(value.get("fingerprint"), str):
            yield value["uses"], value["fingerprint"]
        value = list(value.values())
    if isinstance(value, Iterable) and not isinstance(value, str):
        for item in value:
            yield from _references_in(item)


def _discard(store: Store, folder: Path) -> None:
    """Delete a folder so that no part of it is ever found under its name."""
    trash = store.root / "tmp" / f"{folder.parent.name}-{folder.name}-{time.time_ns()}"
    with suppress(FileNotFoundError):
        if folder.parent != trash.parent:
            move_folder(folder, trash)
            folder = trash
    shutil.rmtree(folder, ignore_errors=True)


def _remove_stale_records(store: Store) -> None:
    """Remove the records of what is gone: reasons, leases, marks of verified artifacts."""
    for note in list_subfolders(store.root / "quarantine"):
        if note.suffix == ".json" and not os.path.lexists(note.with_suffix("")):
            note.unlink(missing_ok=True)
    for folder in list_subfolders(store.root / "leases"):
        uses, fp = folder.parent.name, folder.name
        gone = not store.generations(uses, fp) and not store.work(uses, fp).exists()
        if gone and uses != "run":
            with store.lease(uses, fp, owner="gc") as lease:
                if lease.acquire():
                    _discard(store, folder)
    shutil.rmtree(store.root / "cache" / "verified", ignore_errors=True)
