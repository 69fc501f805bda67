"""The store: one folder that holds everything a run makes and everything that is known of it.

    artifacts/<uses>/<fp>/     what was published; made again on demand: <fp>.2, <fp>.3 …
    work/<uses>/<fp>/          what is being made; survives kills
    quarantine/<uses>/         what turned out to be damaged, each with its reason
    leases/  cache/  tmp/      who makes what; what can be made again; what is being deleted
    runs/  registry/           journals of runs; promotion logs of models

Of several generations of a fingerprint the newest sound one is read.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artifact import (
    OBSERVED,
    Artifact,
    check_name,
    code_version,
    disk_errors,
    environment,
    make_folder,
    move,
    publish,
    write_atomic,
)
from pipeline.errors import CorruptArtifact, Failure, LeaseLost, NotFound, UserError
from pipeline.lease import Lease

ROLLBACKS = 5  # promotions of each alias that gc keeps, so that a rollback finds its model

Fingerprint = tuple[str, str]  # uses, fp


@dataclass(frozen=True)
class Garbage:
    """Something that nothing kept can reach."""

    path: Path
    size: int
    """Bytes on disk."""
    why: str


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


class Store:
    """A folder of artifacts, runs and models. Opening it creates nothing."""

    def __init__(self, root: Path | str) -> None:
        if "://" in str(root):
            raise UserError(
                f"the store {root} is not a folder",
                remedy="give a folder that all machines of the cluster mount",
            )
        self.root = Path(os.path.abspath(Path(root).expanduser()))  # noqa: PTH100
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f"the store {root} is a file", remedy="give a folder")

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    # --- reading -------------------------------------------------------------------------------

    def find(self, uses: str, fp: str) -> Artifact | None:
        """The newest sound artifact of a fingerprint, or None.

        Every file is looked at (presence, size); a damaged artifact is quarantined on the way.
        """
        for folder in self._generations(uses, fp):
            try:
                artifact = Artifact.open(folder)
                if (artifact.uses, artifact.fingerprint) != (uses, fp):
                    raise CorruptArtifact(f"holds {artifact.uses}/{artifact.fingerprint}")
            except CorruptArtifact as error:
                self.quarantine(folder, error.message)
            else:
                return artifact
        return None

    def peek(self, uses: str, fp: str, digest: str = "") -> Artifact | None:
        """The newest readable artifact (of that digest, if one is given); touches nothing."""
        for folder in self._generations(uses, fp):
            with suppress(CorruptArtifact):
                artifact = Artifact.read(folder)
                if digest in ("", artifact.digest):
                    return artifact
        return None

    def checked(self, artifact: Artifact) -> Artifact:
        """The artifact, once its bytes were hashed on this machine. Call it before each use.

        What was hashed before and not touched since is not read again.

        Raises:
            CorruptArtifact: bytes changed; it was quarantined, and a new run remakes it.
        """
        with suppress(Failure, OSError):
            if self._verified(artifact).exists():
                return artifact
        if problems := self.verify(artifact):
            self.quarantine(artifact, "; ".join(problems))
            raise CorruptArtifact(
                "; ".join(problems),
                where=f"{artifact.uses}/{artifact.fingerprint}",
                remedy="it was put aside; `headwater resume` makes it again",
            )
        return artifact

    def verify(self, artifact: Artifact | Path) -> list[str]:
        """Every difference from what was published; reads all bytes. Empty if it is sound."""
        try:
            found = Artifact.read(artifact if isinstance(artifact, Path) else artifact.path)
        except CorruptArtifact as error:
            return [error.message]
        problems = found.verify()
        if not problems:
            self._remember(found)
        return problems

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
        yield from _grandchildren(self.root / "artifacts")

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
            "metrics": _results(out / OBSERVED / "results.json"),
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
        self._remember(artifact)
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
                    move(source, target)
                    note = {"reason": why, "path": _label(source), "time": time.time()}
                    write_atomic(target.with_suffix(".json"), json.dumps(note))
                return

    def quarantined(self, uses: str, fp: str) -> str:
        """Why the last damaged artifact of a fingerprint was put aside; empty if none was."""
        notes = (self.root / "quarantine" / uses).glob(f"{fp}*.json")
        found = sorted((json.loads(note.read_text()) for note in notes), key=lambda n: n["time"])
        return str(found[-1]["reason"]) if found else ""

    # --- collecting ----------------------------------------------------------------------------

    def gc(self, keep: int = 10, dry: bool = True) -> GcReport:
        """Find (and remove, unless `dry`) what nothing can reach any more.

        Kept are the artifacts and unfinished work of the last `keep` runs and of runs at work,
        of each alias's promotions, and everything that those were made from.

        Raises:
            Failure: a plan or a promotion log cannot be read, so nothing is safe to remove.
        """
        report = GcReport(dry)
        wanted = self._reachable(keep)
        for folder in self.folders():
            if (folder.parent.name, folder.name[:16]) in wanted:
                report.kept += 1
            else:
                report.garbage.append(_garbage(folder, "no kept run or alias reaches it"))
        for folder in _grandchildren(self.root / "work"):
            name = (folder.parent.name, folder.name)
            leased = self.lease(*name, owner="gc").alive()
            if not leased and (name not in wanted or self.peek(*name)):
                report.garbage.append(_garbage(folder, "unfinished work of no kept run"))
        for folder in _grandchildren(self.root / "quarantine"):
            if folder.is_dir():
                report.garbage.append(_garbage(folder, "damaged"))
        for folder in _children(self.root / "tmp"):
            report.garbage.append(_garbage(folder, "being deleted when something stopped"))
        if not dry:
            for item in report.garbage:
                self._discard(item.path)
        return report

    def _reachable(self, keep: int) -> set[Fingerprint]:
        """What the kept runs and aliases name, and all that those were made from."""
        runs = _children(self.root / "runs")
        kept = runs[len(runs) - keep :] if keep < len(runs) else runs
        alive = [run for run in runs if self.lease("run", run.name, owner="gc").alive()]
        wanted: set[Fingerprint] = set()
        for run in {*kept, *alive}:
            wanted.update(_named(_read_json(run / "plan.json", {})))
        for log in (self.root / "registry").glob("*/promotions.jsonl"):
            wanted.update(self._promoted(log))
        frontier = list(wanted)
        while frontier:
            for folder in self._generations(*frontier.pop()):
                with suppress(CorruptArtifact):
                    new = set(_named(Artifact.read(folder).manifest["inputs"])) - wanted
                    wanted |= new
                    frontier += new
        return wanted

    def _promoted(self, log: Path) -> Iterator[Fingerprint]:
        """The artifacts that each alias of a model pointed to last."""
        lines = [_parse(line, log) for line in log.read_text().splitlines()]
        for alias in {line.get("alias") for line in lines}:
            promotions = [line for line in lines if line.get("alias") == alias]
            for line in promotions[-ROLLBACKS:]:
                fp = str(line.get("fingerprint"))
                yield from ((f.parent.name, fp) for f in self.folders() if f.name[:16] == fp)

    def _discard(self, folder: Path) -> None:
        """Delete a folder so that no half of it is ever found under its name."""
        trash = self.root / "tmp" / f"{folder.parent.name}-{folder.name}-{time.time_ns()}"
        with suppress(FileNotFoundError):
            if folder.parent != trash.parent:
                move(folder, trash)
                folder = trash
        shutil.rmtree(folder, ignore_errors=True)

    # --- places --------------------------------------------------------------------------------

    def _place(self, area: str, uses: str, fp: str) -> Path:
        return self.root / area / check_name(uses, "a stage") / check_name(fp, "an artifact")

    def _generations(self, uses: str, fp: str) -> list[Path]:
        """The folders of a fingerprint, the newest first."""
        first = self._place("artifacts", uses, fp)
        found = [path for path in _children(first.parent) if _generation(path, fp)]
        return sorted(found, key=lambda path: -_generation(path, fp))

    def _next_generation(self, uses: str, fp: str) -> Path:
        first = self._place("artifacts", uses, fp)
        newest = max((_generation(path, fp) for path in _children(first.parent)), default=0)
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

    def _verified(self, artifact: Artifact) -> Path:
        """The mark that says: these very files were hashed on this machine."""
        return self.root / "cache" / "verified" / platform.node() / artifact.stamp()

    def _remember(self, artifact: Artifact) -> None:
        with suppress(Failure, OSError):
            mark = self._verified(artifact)
            make_folder(mark.parent)
            mark.touch()


def _gather(work: Path) -> None:
    """Copy what was observed beside the data: a copy, so that a kill here loses nothing."""
    source, target = work / OBSERVED, work / "out" / OBSERVED
    if not work.joinpath("out").is_dir() or not any(work.joinpath("out").iterdir()):
        raise Failure("the stage wrote nothing", where=str(work / "out"))
    if not source.is_dir():
        return
    with disk_errors(target):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(exist_ok=True)
        for path in _children(source):
            if path.is_file():
                write_atomic(target / path.name, path.read_bytes(), durable=False)


def _results(path: Path) -> dict[str, Any]:
    return dict(_read_json(path, {}))


def _read_json(path: Path, default: Any) -> Any:
    return _parse(path.read_text(), path) if path.exists() else default


def _parse(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise Failure(
            "unreadable", where=str(path), remedy="restore it or move it away; nothing was removed"
        ) from None


def _named(value: Any) -> Iterator[Fingerprint]:
    """Every (uses, fingerprint) that a JSON value holds, at any depth."""
    if isinstance(value, Mapping):
        if isinstance(value.get("uses"), str) and isinstance(value.get("fingerprint"), str):
            yield value["uses"], value["fingerprint"]
        value = list(value.values())
    if isinstance(value, Iterable) and not isinstance(value, str):
        for item in value:
            yield from _named(item)


def _generation(folder: Path, fp: str) -> int:
    """1 for `<fp>`, k for `<fp>.k`, 0 for anything else."""
    name, _, count = folder.name.partition(".")
    if name != fp:
        return 0
    return 1 if not count else int(count) if count.isdigit() else 0


def _label(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _grandchildren(folder: Path) -> Iterator[Path]:
    return (path for child in _children(folder) for path in _children(child))


def _garbage(folder: Path, why: str) -> Garbage:
    size = sum(
        (Path(parent) / name).lstat().st_size
        for parent, _, names in os.walk(folder)
        for name in names
    )
    return Garbage(folder, size, why)
