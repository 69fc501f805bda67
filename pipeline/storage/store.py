"""The store: one folder of artifacts, runs and models.

    artifacts/<uses>/<fp>/     published artifacts; produced again on demand: <fp>.2, <fp>.3 …
    work/<uses>/<fp>/          work in progress; survives kills
    quarantine/<uses>/         damaged artifacts, each with its reason
    leases/  cache/  tmp/      leases; regenerable data; folders being deleted
    runs/  registry/           folders of runs; promotion logs of models

Of several generations of a fingerprint the newest valid one is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import atomic_io
from pipeline.errors import CorruptArtifact, Failure, LeaseLost, NotFound, UserError
from pipeline.naming import check_name
from pipeline.storage.artifact import OBSERVED, Artifact, publish
from pipeline.storage.lease import Lease, machine_id
from pipeline.storage.provenance import environment


@dataclass(frozen=True)
class PublishRequest:
    """The facts about a finished stage that its artifact's manifest records."""

    uses: str
    fingerprint: str
    kind: str
    version: int
    payload: Any
    """Everything that the fingerprint is the hash of."""
    inputs: Mapping[str, Artifact | Sequence[Artifact]]
    run: Mapping[str, Any]
    """{id, stage, attempt}."""
    seconds: float
    code: Mapping[str, Any] = field(default_factory=dict)
    """{commit, dirty, source_hash} of the stage."""


class Store:
    """A folder of artifacts, runs and models. Opening it creates nothing."""

    def __init__(self, root: Path | str) -> None:
        if "://" in str(root):
            remedy = "give a folder that all machines of the cluster mount"
            raise UserError(f"the store {root} is not a folder", remedy=remedy)
        self.root = Path(os.path.abspath(Path(root).expanduser()))  # noqa: PTH100
        with atomic_io.disk_errors(self.root, to="read"):
            if self.root.exists() and not self.root.is_dir():
                raise UserError(f"the store {root} is a file", remedy="give a folder")

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    # --- reading -------------------------------------------------------------------------------

    def find(self, uses: str, fp: str) -> Artifact | None:
        """Return the newest valid artifact of a fingerprint, or None; changes nothing.

        Presence and size of every file are checked; damaged generations are skipped.

        Raises:
            Failure: the store cannot be read.
        """
        found = (artifact for _, artifact in self._inspect_generations(uses, fp))
        return next((artifact for artifact in found if isinstance(artifact, Artifact)), None)

    def find_or_quarantine(self, uses: str, fp: str) -> Artifact | None:
        """Find as `find` does, and quarantine damaged generations; for the holder of the lease."""
        for folder, found in self._inspect_generations(uses, fp):
            if isinstance(found, Artifact):
                return found
            self.quarantine(folder, found)
        return None

    def corruption_reason(self, uses: str, fp: str) -> str:
        """Return the damage of the newest artifact, quarantined or not; empty if it is valid."""
        for _, found in self._inspect_generations(uses, fp):
            return found if isinstance(found, str) else ""
        notes: list[dict[str, Any]] = [
            atomic_io.read_json(path, {})
            for path in atomic_io.list_folder(self.root / "quarantine" / uses)
            if path.name.startswith(fp) and path.suffix == ".json"
        ]
        newest = max(notes, key=lambda note: note.get("time", 0.0), default={})
        return str(newest.get("reason", ""))

    def _inspect_generations(self, uses: str, fp: str) -> Iterator[tuple[Path, Artifact | str]]:
        """Yield each generation's folder, the newest first, with its artifact or its damage."""
        for folder in self.generations(uses, fp):
            try:
                artifact = Artifact.open(folder)
            except CorruptArtifact as error:
                yield folder, error.message
                continue
            held = f"{artifact.uses}/{artifact.fingerprint}"
            yield folder, artifact if held == f"{uses}/{fp}" else f"holds {held}"

    def latest_readable(self, uses: str, fp: str, digest: str = "") -> Artifact | None:
        """Return the newest artifact with a readable manifest, of that digest if one is given."""
        for folder in self.generations(uses, fp):
            with suppress(CorruptArtifact):
                artifact = Artifact.read(folder)
                if digest in ("", artifact.digest):
                    return artifact
        return None

    def ensure_verified(self, artifact: Artifact, run: str = "") -> Artifact:
        """Return the artifact once its bytes were hashed on this machine; call it before each use.

        Files that were hashed before, for this run or (without one) since the machine booted, and
        did not change since are not read again. Their writer does not count as a reader: bits can
        flip on the way to the disk and on it.

        Raises:
            CorruptArtifact: bytes changed; it was quarantined, and a new run produces it again.
            Failure: the artifact cannot be read.
        """
        mark: Path | None = None
        with suppress(Failure, OSError):
            reader = f"{platform.node()}\0{machine_id()}\0{run}\0"
            token = hashlib.sha256((reader + artifact.change_token()).encode()).hexdigest()
            mark = self.root / "cache" / "verified" / token
            if mark.exists():
                return artifact
        if problems := "; ".join(self.verify(artifact)):
            self.quarantine(artifact, problems)
            where = f"{artifact.uses}/{artifact.fingerprint}"
            remedy = "it was quarantined; `headwater resume` produces it again"
            raise CorruptArtifact(problems, where=where, remedy=remedy)
        if mark:
            with suppress(Failure, OSError):
                atomic_io.make_folder(mark.parent)
                mark.touch()
        return artifact

    def verify(self, artifact: Artifact | Path) -> list[str]:
        """Return every difference from what was published; reads all bytes. Empty if it is valid.

        Raises:
            Failure: the artifact cannot be read.
        """
        try:
            found = Artifact.read(artifact if isinstance(artifact, Path) else artifact.path)
        except CorruptArtifact as error:
            return [error.message]
        return found.verify()

    def by_fingerprint(self, prefix: str) -> Artifact:
        """Return the artifact whose fingerprint, or `uses/fingerprint`, begins with a prefix.

        Raises:
            NotFound: no artifact matches, or several do.
        """
        labels = {folder: f"{folder.parent.name}/{folder.name}" for folder in self.folders()}
        folders = [
            f
            for f, label in labels.items()
            if f.name.startswith(prefix) or label.startswith(prefix)
        ]
        names = sorted({(folder.parent.name, folder.name[:16]) for folder in folders})
        if not names:
            remedy = "`headwater show RUN` lists the artifacts of a run"
            raise NotFound(
                f"no artifact begins with {prefix!r}", where=str(self.root), remedy=remedy
            )
        if len(names) > 1:
            listed = ", ".join(f"{uses}/{fp}" for uses, fp in names[:5])
            raise NotFound(f"several artifacts begin with {prefix!r}: {listed}")
        uses, fp = names[0]
        exact = [folder for folder in folders if prefix in (folder.name, labels[folder])]
        if len(exact) == 1 and exact[0].name != fp:
            return Artifact.open(exact[0])
        if found := self.find(uses, fp):
            return found
        message = f"{uses}/{fp} is damaged: {self.corruption_reason(uses, fp)}"
        remedy = "run the pipeline that made it again"
        raise NotFound(message, where=str(self.root), remedy=remedy)

    def artifacts(self) -> Iterator[Artifact]:
        """Yield every artifact with a readable manifest, all generations, in a fixed order."""
        for folder in self.folders():
            with suppress(CorruptArtifact):
                yield Artifact.read(folder)

    def folders(self) -> Iterator[Path]:
        """Yield every artifact's folder, readable or not."""
        yield from atomic_io.list_subfolders(self.root / "artifacts")

    def generations(self, uses: str, fp: str) -> list[Path]:
        """Return the folders of a fingerprint, the newest first."""
        first = self._path("artifacts", uses, fp)
        found = [path for path in atomic_io.list_folder(first.parent) if _generation(path, fp)]
        return sorted(found, key=lambda path: -_generation(path, fp))

    def work(self, uses: str, fp: str) -> Path:
        """Return the folder of a stage's unpublished work; it may not exist."""
        return self._path("work", uses, fp)

    def lease(self, uses: str, fp: str, owner: str) -> Lease:
        """Return the lease to make an artifact, not acquired yet."""
        return Lease(self._path("leases", uses, fp), owner)

    def _path(self, area: str, uses: str, fp: str) -> Path:
        return self.root / area / check_name(uses, "a stage") / check_name(fp, "an artifact")

    # --- writing -------------------------------------------------------------------------------

    def publish(self, request: PublishRequest, lease: Lease | None = None) -> Artifact:
        """Make the work folder's `out` an artifact, with `observed/` next to its data.

        Its metrics are the stage's results (`observed/results.json`). If the fingerprint has
        artifacts already, this is its next generation; they stay.

        Args:
            lease: checked last before the commit.

        Raises:
            LeaseLost: another run holds the lease or published first.
            Failure: nothing was written, or a write fails; the work stays for a resume.
        """
        uses, fp = request.uses, request.fingerprint
        work = self.work(uses, fp)
        _copy_observed(work)
        facts = {
            **vars(request),
            "inputs": {name: self._references(found) for name, found in request.inputs.items()},
            "metrics": atomic_io.read_json(work / "out" / OBSERVED / "results.json", {}),
            "environment": environment(),
            "run": dict(request.run),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        first, newest = self._path("artifacts", uses, fp), self.generations(uses, fp)[:1]
        target = first.with_name(f"{fp}.{_generation(newest[0], fp) + 1}") if newest else first
        try:
            artifact = publish(work / "out", target, facts, lease.check if lease else lambda: None)
        except FileExistsError:
            raise LeaseLost("another run published it first", where=f"{uses}/{fp}") from None
        shutil.rmtree(work, ignore_errors=True)
        return artifact

    def quarantine(self, artifact: Artifact | Path, why: str) -> None:
        """Move a damaged artifact to where nothing reads it, with the reason next to it."""
        source = artifact if isinstance(artifact, Path) else artifact.path
        folder = self.root / "quarantine" / source.parent.name
        for count in range(1, 1 << 20):  # pragma: no branch
            target = folder / f"{source.name}-{count}"
            with suppress(FileExistsError):
                with suppress(FileNotFoundError):  # another run was faster
                    atomic_io.move_folder(source, target)
                    label = f"{source.parent.name}/{source.name}"
                    note = {"reason": why, "path": label, "time": time.time()}
                    atomic_io.write_atomic(folder / f"{target.name}.json", json.dumps(note))
                return

    def _references(self, found: Artifact | Sequence[Artifact]) -> list[dict[str, str]]:
        """Return a manifest's references to inputs; relative paths, so that a store can move."""
        references = []
        for made in [found] if isinstance(found, Artifact) else found:
            place = {"path": os.path.relpath(made.path, self.root), "digest": made.digest}
            references.append({"uses": made.uses, "fingerprint": made.fingerprint, **place})
        return references


def _copy_observed(work: Path) -> None:
    """Copy `observed/` next to the data: a copy, so that a kill here loses nothing."""
    source, target = work / OBSERVED, work / "out" / OBSERVED
    if not atomic_io.list_folder(work / "out"):
        raise Failure("the stage wrote nothing", where=str(work / "out"))
    with atomic_io.disk_errors(target):
        if not source.is_dir():
            return
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(exist_ok=True)
        for path in filter(Path.is_file, atomic_io.list_folder(source)):
            atomic_io.write_atomic(target / path.name, path.read_bytes(), durable=False)


def _generation(folder: Path, fp: str) -> int:
    """Return 1 for `<fp>`, k for `<fp>.k`, 0 for anything else."""
    name, _, count = folder.name.partition(".")
    if name != fp:
        return 0
    return 1 if not count else int(count) if count.isdigit() else 0
