"""What of a store can go: all that neither a run worth keeping nor an alias of a model can reach.

Kept are the artifacts and unfinished work of the newest runs and of runs at work, of each alias's
last promotions, and everything that those were made from. Whatever cannot be read stops the
collection: what is not known to be garbage is none.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.atomic_io import (
    disk_errors,
    list_folder,
    list_subfolders,
    move_folder,
    read_lines,
)
from pipeline.errors import CorruptArtifact, Failure
from pipeline.storage.artifact import Artifact

if TYPE_CHECKING:
    from pipeline.storage.store import Store

KEPT_PROMOTIONS = 5  # promotions of each alias that are kept, so that a rollback finds its model

Fingerprint = tuple[str, str]  # uses, fp


@dataclass(frozen=True)
class Garbage:
    """Something that nothing kept can reach."""

    path: Path
    size: int
    """Bytes on disk."""
    why: str

    @classmethod
    def at(cls, path: Path, why: str) -> Garbage:
        """What is at a path, with its size."""
        inside = [Path(parent) / name for parent, _, names in os.walk(path) for name in names]
        return cls(path, sum(map(_size, inside)), why)


@dataclass
class GcReport:
    """What `gc` found: removed if it was not dry."""

    dry: bool
    garbage: list[Garbage] = field(default_factory=list)
    kept: int = 0
    """Artifacts that stay."""

    @property
    def size(self) -> int:
        """Bytes that go."""
        return sum(item.size for item in self.garbage)


def collect_garbage(store: Store, keep: int, dry: bool) -> GcReport:
    """Find garbage and, unless `dry`, remove it.

    Args:
        keep: how many of the newest runs count.

    Raises:
        Failure: a plan, a promotion log or an artifact cannot be read; nothing was removed.
    """
    with disk_errors(store.root):
        report = _find(store, keep, dry)
        if not dry:
            for item in report.garbage:
                _discard(store, item.path)
            _prune_stale_records(store)
    return report


def _find(store: Store, keep: int, dry: bool) -> GcReport:
    report = GcReport(dry)
    wanted = _reachable(store, keep)
    for folder in store.folders():
        if (folder.parent.name, folder.name[:16]) in wanted:
            report.kept += 1
        else:
            report.garbage.append(Garbage.at(folder, "no kept run or alias reaches it"))
    for folder in list_subfolders(store.root / "work"):
        name = (folder.parent.name, folder.name)
        leased = store.lease(*name, owner="gc").alive()
        if not leased and (name not in wanted or store.latest_readable(*name)):
            report.garbage.append(Garbage.at(folder, "unfinished work of no kept run"))
    damaged = filter(Path.is_dir, list_subfolders(store.root / "quarantine"))
    report.garbage += [Garbage.at(path, "damaged") for path in damaged]
    cached = [path for path in list_folder(store.root / "cache") if path.name != "verified"]
    report.garbage += [Garbage.at(path, "stages can make it again") for path in cached]
    for folder in list_folder(store.root / "tmp"):
        report.garbage.append(Garbage.at(folder, "being deleted when something stopped"))
    return report


def _reachable(store: Store, keep: int) -> set[Fingerprint]:
    """What the kept runs and aliases name, and all that those were made from."""
    runs = list_folder(store.root / "runs")
    kept = runs[len(runs) - keep :] if keep < len(runs) else runs
    alive = [run for run in runs if store.lease("run", run.name, owner="gc").alive()]
    wanted: set[Fingerprint] = set()
    for run in {*kept, *alive}:
        wanted.update(_references_in(_plan(run)))
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


def _plan(run: Path) -> Any:
    """A run's plan; a run that is only being created has none."""
    try:
        return _parse((run / "plan.json").read_bytes(), run / "plan.json")
    except FileNotFoundError:
        return {}


def _promoted(store: Store, log: Path) -> Iterator[Fingerprint]:
    """The artifacts that each alias of a model pointed to last."""
    lines = [_parse(line, log) for line in read_lines(log)]
    for alias in {line.get("alias") for line in lines}:
        promotions = [line for line in lines if line.get("alias") == alias]
        for line in promotions[-KEPT_PROMOTIONS:]:
            fp = str(line.get("fingerprint"))
            yield from ((f.parent.name, fp) for f in store.folders() if f.name[:16] == fp)


def _parse(text: bytes, path: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise Failure(
            "unreadable", where=str(path), remedy="restore it or move it away; nothing was removed"
        ) from None


def _references_in(value: Any) -> Iterator[Fingerprint]:
    """Every (uses, fingerprint) that a JSON value holds, at any depth."""
    if isinstance(value, Mapping):
        if isinstance(value.get("uses"), str) and isinstance(value.get("fingerprint"), str):
            yield value["uses"], value["fingerprint"]
        value = list(value.values())
    if isinstance(value, Iterable) and not isinstance(value, str):
        for item in value:
            yield from _references_in(item)


def _discard(store: Store, folder: Path) -> None:
    """Delete a folder so that no half of it is ever found under its name."""
    trash = store.root / "tmp" / f"{folder.parent.name}-{folder.name}-{time.time_ns()}"
    with suppress(FileNotFoundError):
        if folder.parent != trash.parent:
            move_folder(folder, trash)
            folder = trash
    shutil.rmtree(folder, ignore_errors=True)


def _prune_stale_records(store: Store) -> None:
    """Remove what speaks of nothing any more: reasons, leases, marks of what was hashed."""
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


def _size(path: Path) -> int:
    """Bytes of a file, which somebody else may be deleting."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
