"""The store: one folder that holds everything a run makes and everything that is known of it.

    artifacts/<uses>/<fp>/     what was published; made again on demand: <fp>.2, <fp>.3 …
    work/<uses>/<fp>/          what is being made; survives kills
    quarantine/<uses>/         what turned out to be damaged, each with its reason
    leases/  cache/  tmp/      who makes what; what can be made again; what is being deleted
    runs/  registry/           journals of runs; promotion logs of models

Of several generations of a fingerprint the newest sound one is read.
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
from pathlib import Path
from typing import Any

from pipeline.atomic_io import (
    disk_errors,
    list_folder,
    list_subfolders,
    make_folder,
    move_folder,
    read_json,
    write_atomic,
)
from pipeline.errors import CorruptArtifact, Failure, LeaseLost, NotFound, UserError
from pipeline.naming import check_name
from pipeline.storage.artifact import OBSERVED, Artifact, publish
from pipeline.storage.garbage_collection import GcReport, collect_garbage
from pipeline.storage.lease import Lease, machine_id
from pipeline.storage.provenance import code_version, environment


class Store:
    """A folder of artifacts, runs and models. Opening it creates nothing."""

    def __init__(self, root: Path | str) -> None:
        if "://" in str(root):
            raise UserError(
                f"the store {root} is not a folder",
                remedy="give a folder that all machines of the cluster mount",
            )
        self.root = Path(os.path.abspath(Path(root).expanduser()))  # noqa: PTH100
        with disk_errors(self.root, to="read"):
            if self.root.exists() and not self.root.is_dir():
                raise UserError(f"the store {root} is a file", remedy="give a folder")

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    # --- reading -------------------------------------------------------------------------------

    def find(self, uses: str, fp: str) -> Artifact | None:
        """The newest sound artifact of a fingerprint, or None; touches nothing.

        Every file is looked at (presence, size); what is damaged is passed over.

        Raises:
            Failure: the disk does not let it be read, which says nothing of the artifact.
        """
        looks = self._inspect_generations(uses, fp)
        return next((found for _, found in looks if isinstance(found, Artifact)), None)

    def find_or_quarantine(self, uses: str, fp: str) -> Artifact | None:
        """As `find`, for who holds the lease: what is damaged is put aside, to be made again."""
        for folder, found in self._inspect_generations(uses, fp):
            if isinstance(found, Artifact):
                return found
            self.quarantine(folder, found)
        return None

    def corruption_reason(self, uses: str, fp: str) -> str:
        """What is wrong with the newest artifact, put aside or not; empty if nothing is."""
        for _, found in self._inspect_generations(uses, fp):
            return found if isinstance(found, str) else ""
        notes: list[dict[str, Any]] = [
            read_json(path, {})
            for path in list_folder(self.root / "quarantine" / uses)
            if path.name.startswith(fp) and path.suffix == ".json"
        ]
        newest = max(notes, key=lambda note: note.get("time", 0.0), default={})
        return str(newest.get("reason", ""))

    def _inspect_generations(self, uses: str, fp: str) -> Iterator[tuple[Path, Artifact | str]]:
        """Each generation's folder, the newest first, with the artifact or what is wrong."""
        for folder in self.generations(uses, fp):
            try:
                artifact = Artifact.open(folder)
            except CorruptArtifact as error:
                yield folder, error.message
                continue
            held = (artifact.uses, artifact.fingerprint)
            yield folder, artifact if held == (uses, fp) else f"holds {held[0]}/{held[1]}"

    def latest_readable(self, uses: str, fp: str, digest: str = "") -> Artifact | None:
        """The newest readable artifact (of that digest, if one is given); touches nothing."""
        for folder in self.generations(uses, fp):
            with suppress(CorruptArtifact):
                artifact = Artifact.read(folder)
                if digest in ("", artifact.digest):
                    return artifact
        return None

    def ensure_verified(self, artifact: Artifact, run: str = "") -> Artifact:
        """The artifact, once its bytes were hashed on this machine. Call it before each use.

        What was hashed before, for this run or (without one) since the machine's start, and was
        not touched since is not read again. Who wrote it does not count as a reader: bits can
        flip on the way to the disk and on it.

        Raises:
            CorruptArtifact: bytes changed; it was quarantined, and a new run remakes it.
            Failure: the disk does not let it be read, which says nothing of the artifact.
        """
        mark = self._mark(artifact, run)
        with suppress(OSError):
            if mark and mark.exists():
                return artifact
        if problems := self.verify(artifact):
            self.quarantine(artifact, "; ".join(problems))
            raise CorruptArtifact(
                "; ".join(problems),
                where=f"{artifact.uses}/{artifact.fingerprint}",
                remedy="it was put aside; `headwater resume` makes it again",
            )
        if mark:
            with suppress(Failure, OSError):
                make_folder(mark.parent)
                mark.touch()
        return artifact

    def _mark(self, artifact: Artifact, run: str) -> Path | None:
        """The file that says: a reader hashed these very files here; None if they look odd."""
        reader = f"{platform.node()}\0{machine_id()}\0{run}\0"
        try:
            seen = hashlib.sha256((reader + artifact.change_token()).encode()).hexdigest()
        except (Failure, OSError):
            return None
        return self.root / "cache" / "verified" / seen

    def verify(self, artifact: Artifact | Path) -> list[str]:
        """Every difference from what was published; reads all bytes. Empty if it is sound.

        Raises:
            Failure: the disk does not let it be read, which says nothing of the artifact.
        """
        try:
            found = Artifact.read(artifact if isinstance(artifact, Path) else artifact.path)
        except CorruptArtifact as error:
            return [error.message]
        return found.verify()

    def by_fingerprint(self, prefix: str) -> Artifact:
        """The artifact whose fingerprint, or `uses/fingerprint`, begins like that.

        Raises:
            NotFound: none does, or several do.
        """
        folders = [
            folder
            for folder in self.folders()
            if folder.name.startswith(prefix) or _label(folder).startswith(prefix)
        ]
        names = {(folder.parent.name, folder.name[:16]) for folder in folders}
        if len(names) > 1:
            listed = ", ".join(sorted(f"{uses}/{fp}" for uses, fp in names)[:5])
            raise NotFound(f"several artifacts begin with {prefix!r}: {listed}")
        exact = [folder for folder in folders if prefix in (folder.name, _label(folder))]
        for uses, fp in names:
            if len(exact) == 1 and exact[0].name != fp:
                return Artifact.open(exact[0])
            if found := self.find(uses, fp):
                return found
            raise NotFound(
                f"{uses}/{fp} is damaged: {self.corruption_reason(uses, fp)}",
                where=str(self.root),
                remedy="the pipeline that made it makes it again",
            )
        raise NotFound(
            f"no artifact begins with {prefix!r}",
            where=str(self.root),
            remedy="`headwater show RUN` lists the artifacts of a run",
        )

    def artifacts(self) -> Iterator[Artifact]:
        """Every artifact with a readable manifest, all generations, in a fixed order."""
        for folder in self.folders():
            with suppress(CorruptArtifact):
                yield Artifact.read(folder)

    def folders(self) -> Iterator[Path]:
        """Every artifact's folder, readable or not (for `verify --all`)."""
        yield from list_subfolders(self.root / "artifacts")

    def generations(self, uses: str, fp: str) -> list[Path]:
        """The folders of a fingerprint, the newest first."""
        first = self._place("artifacts", uses, fp)
        found = [path for path in list_folder(first.parent) if _generation(path, fp)]
        return sorted(found, key=lambda path: -_generation(path, fp))

    def work(self, uses: str, fp: str) -> Path:
        """Where a stage works until its artifact is published; may not exist yet."""
        return self._place("work", uses, fp)

    def lease(self, uses: str, fp: str, owner: str) -> Lease:
        """The claim to make an artifact; not held yet."""
        return Lease(self._place("leases", uses, fp), owner)

    # --- writing -------------------------------------------------------------------------------

    def publish(
        self,
        uses: str,
        fp: str,
        *,
        kind: str,
        version: int,
        payload: Any,
        inputs: Mapping[str, Artifact | Sequence[Artifact]],
        run: Mapping[str, Any],
        seconds: float,
        lease: Lease | None = None,
        source_hash: str = "",
    ) -> Artifact:
        """Make the work folder's `out` an artifact, with `observed/` beside its data.

        Its metrics are the stage's results (`observed/results.json`). If the fingerprint has
        artifacts already, this is its next generation; they stay.

        Args:
            run: {id, stage, attempt}.
            lease: checked last before the commit.

        Raises:
            LeaseLost: another run holds the lease or published first.
            Failure: nothing was written, or the disk refuses; the work stays for a resume.
        """
        work = self.work(uses, fp)
        out = work / "out"
        _gather(work)
        facts = {
            "kind": kind,
            "uses": uses,
            "version": version,
            "fingerprint": fp,
            "payload": payload,
            "inputs": {name: self._references(found) for name, found in inputs.items()},
            "metrics": read_json(out / OBSERVED / "results.json", {}),
            "code": {**code_version(), "source_hash": source_hash},
            "environment": environment(),
            "run": dict(run),
            "seconds": seconds,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        check = lease.check if lease else lambda: None
        try:
            artifact = publish(out, self._next_generation(uses, fp), facts, check=check)
        except FileExistsError:
            raise LeaseLost("another run published it first", where=f"{uses}/{fp}") from None
        shutil.rmtree(work, ignore_errors=True)
        return artifact

    def quarantine(self, artifact: Artifact | Path, why: str) -> None:
        """Put a damaged artifact where nothing reads it, with the reason beside it."""
        source = artifact if isinstance(artifact, Path) else artifact.path
        aside = self.root / "quarantine" / source.parent.name
        for count in range(1, 1 << 20):  # pragma: no branch
            target = aside / f"{source.name}-{count}"
            with suppress(FileExistsError):
                with suppress(FileNotFoundError):  # another run was quicker
                    move_folder(source, target)
                    note = {"reason": why, "path": _label(source), "time": time.time()}
                    write_atomic(aside / f"{target.name}.json", json.dumps(note))
                return

    def gc(self, keep: int = 10, dry: bool = True) -> GcReport:
        """Find (and remove, unless `dry`) what nothing can reach any more; see `garbage`.

        Raises:
            Failure: a plan, a promotion log or an artifact cannot be read, so nothing is safe to
                remove.
        """
        return collect_garbage(self, keep, dry)

    # --- places --------------------------------------------------------------------------------

    def _place(self, area: str, uses: str, fp: str) -> Path:
        return self.root / area / check_name(uses, "a stage") / check_name(fp, "an artifact")

    def _next_generation(self, uses: str, fp: str) -> Path:
        first = self._place("artifacts", uses, fp)
        newest = max((_generation(path, fp) for path in list_folder(first.parent)), default=0)
        return first if not newest else first.with_name(f"{fp}.{newest + 1}")

    def _references(self, found: Artifact | Sequence[Artifact]) -> list[dict[str, str]]:
        """How a manifest names its inputs; paths are relative, so that a store can be moved."""
        return [
            {
                "uses": artifact.uses,
                "fingerprint": artifact.fingerprint,
                "digest": artifact.digest,
                "path": os.path.relpath(artifact.path, self.root),
            }
            for artifact in ([found] if isinstance(found, Artifact) else found)
        ]


def _gather(work: Path) -> None:
    """Copy what was observed beside the data: a copy, so that a kill here loses nothing."""
    source, target = work / OBSERVED, work / "out" / OBSERVED
    if not list_folder(work / "out"):
        raise Failure("the stage wrote nothing", where=str(work / "out"))
    with disk_errors(target):
        if not source.is_dir():
            return
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(exist_ok=True)
        for path in list_folder(source):
            if path.is_file():
                write_atomic(target / path.name, path.read_bytes(), durable=False)


def _generation(folder: Path, fp: str) -> int:
    """1 for `<fp>`, k for `<fp>.k`, 0 for anything else."""
    name, _, count = folder.name.partition(".")
    if name != fp:
        return 0
    return 1 if not count else int(count) if count.isdigit() else 0


def _label(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"
