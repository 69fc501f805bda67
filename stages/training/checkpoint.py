"""Checkpoints independent of the layout: weights and optimizer states by parameter name, in
safetensors.

    <folder>/000007-step-00000200/       save number and step
        rank-0.safetensors               tensors of rank 0: "<engine>/<kind>/<parameter>@<start>"
        rank-0.json                      size and sha256 of the file, and whether all is finite
        extra.safetensors                tensors of the objective's named extra state
        manifest.json                    written last: without it the checkpoint does not exist

Each rank writes its own part in the background, from a copy in host memory, while training
continues. No collective is used: rank 0 polls for the other ranks' completion files (rank-N.json),
then writes the manifest. A save with a number that is not finite is never committed. Training
resumes from the newest folder whose hashes are right; a corrupt one is logged and removed. Some
checkpoints are marked as rollback targets; which ones does not depend on interruptions.

Torch's generators are not saved, because the trainer seeds them from (seed, step, rank).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.atomic_io import NOT_FOUND, disk_errors, make_folder, write_atomic
from pipeline.errors import Failure
from pipeline.storage.artifact import hash_file
from stages.models import safetensors_io
from stages.models.safetensors_io import SafetensorsFile
from stages.training.zero_state import Fragment

if TYPE_CHECKING:
    from stages.training.engine import Engine
    from stages.training.objective import State
    from stages.training.ranks.rank import Rank

SCHEMA = 1
MANIFEST = "manifest.json"
EXTRA = "extra.safetensors"
WRITE_TIMEOUT = 900.0
"""Seconds that rank 0 waits for the other ranks' files, and every rank for its disk; after that the
watchdog may find it stalled."""
HEARTBEAT_INTERVAL = 0.1
"""Seconds between two heartbeats while waiting for a save."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Return the number of steps done."""
        return int(self.manifest["step"])

    @property
    def for_rollback(self) -> bool:
        """Return whether training may roll back to it."""
        return bool(self.manifest.get("anchor", False))

    def corruption_reasons(self, rank: int = 0, world: int = 1) -> list[str]:
        """Return the differences of its files from what was written. A rank checks every `world`-th
        file from the `rank`-th on."""
        return [
            reason
            for file in self.manifest["files"][rank::world]
            if (reason := _corruption_reason(self.path / file["name"], file))
        ]


class CheckpointManager:
    """Writer and finder of the checkpoints of one training, on every rank and called alike."""

    def __init__(
        self,
        folder: Path,
        rank: Rank,
        keep_latest: int,
        keep_interval: int = 0,
        *,
        log: Callable[[str], None] = lambda _: None,
        on_commit: Callable[[int], None] = lambda _: None,
        kinds: tuple[str, ...] | None = None,
    ) -> None:
        """Set up the manager.

        Args:
            folder: folder of the checkpoints.
            rank: this process.
            keep_latest: newest checkpoints to keep.
            keep_interval: steps between checkpoints that are never removed; 0 keeps none.
            log: called with a message on rank 0 and others.
            on_commit: called on rank 0 with the step of each committed checkpoint.
            kinds: what is saved of a parameter (`fp32`, `exp_avg`...). Default: everything.
        """
        self.folder = folder
        self.rank = rank
        self.keep_latest = keep_latest
        self.keep_interval = keep_interval
        self.saved_step = -1
        """Step of the newest save, or of the checkpoint that `latest` returned."""
        self._log = log
        self._on_commit = on_commit
        self._kinds = kinds
        self._save_number = 0
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None
        self._host_buffers: dict[str, Tensor] = {}

    def latest(self, *, for_rollback: bool = False) -> Checkpoint | None:
        """Return the newest checkpoint (or rollback target) whose bytes are those written.

        The ranks divide the hashing among them. Corrupt and uncommitted ones are removed.
        """
        self.wait()
        names = self.rank.broadcast(self._remove_uncommitted() if self.rank.is_main else None)
        self._save_number = 1 + max((int(name.split("-")[0]) for name in names), default=0)
        for name in reversed(names):
            checkpoint = Checkpoint(self.folder / name, read_manifest(self.folder / name))
            if for_rollback and not checkpoint.for_rollback:
                continue
            own = checkpoint.corruption_reasons(self.rank.index, self.rank.world)
            reasons = [r for found in self.rank.all_gather_object(own) for r in found]
            if not reasons:
                self.saved_step = checkpoint.step
                return checkpoint
            for reason in reasons:
                self._log(f"checkpoint {name} is corrupt: {reason}")
            self._log(f"falling back from checkpoint {name} to the one before")
            if self.rank.is_main:
                remove(checkpoint.path)
        return None

    def save(
        self, step: int, engines: Mapping[str, Engine], extra: State, *, for_rollback: bool = False
    ) -> None:
        """Copy the state to host memory, and write it in the background.

        Args:
            step: number of steps done.
            engines: the trained modules.
            extra: further state, identical on all ranks (rank 0 writes it).
            for_rollback: whether training may roll back to it.

        Raises:
            Failure: an earlier save could not be written.
        """
        self.wait()
        folder = self.folder / f"{self._save_number:06d}-step-{step:08d}"
        self._save_number += 1
        self.saved_step = step
        values, tensors = safetensors_io.split(extra)
        facts = {
            "schema": SCHEMA,
            "step": step,
            "anchor": for_rollback,
            "layout": {
                "world": self.rank.world,
                "zero": {name: engine.zero_stage for name, engine in engines.items()},
            },
            "engines": {
                name: {"updates": engine.updates, "shapes": engine.shapes}
                for name, engine in engines.items()
            },
            "extra": values,
        }
        own = dict(self._copy_to_host(engines))
        tensors = {name: value.detach().cpu().clone() for name, value in tensors.items()}
        self._writer = threading.Thread(
            target=self._write, args=(folder, own, facts, tensors), daemon=True
        )
        self._writer.start()

    def wait(self) -> None:
        """Wait until the save in progress is committed. All ranks call it, and return together.

        Raises:
            Failure: it could not be written.
        """
        if self._writer is None:
            return
        deadline = time.monotonic() + WRITE_TIMEOUT
        while self._writer.is_alive() and time.monotonic() < deadline:
            self._writer.join(HEARTBEAT_INTERVAL)
            self.rank.heartbeat_waiting()
        self._writer.join()
        self._writer = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        self.rank.barrier()

    def load(self, checkpoint: Checkpoint, engines: Mapping[str, Engine]) -> State:
        """Fill the engines, and return the extra state.

        Raises:
            Failure: it was saved from other modules, or lacks numbers.
        """
        reader = CheckpointReader(checkpoint)
        for name, engine in engines.items():
            reader.check(name, engine.shapes)

            def read(fragment: Fragment, kind: str, name: str = name) -> Tensor:
                return reader.read(f"{name}/{kind}/{fragment.name}", fragment.start, fragment.count)

            engine.state.load(
                read, self._kinds, updates=checkpoint.manifest["engines"][name]["updates"]
            )
        return reader.extra()

    def _copy_to_host(self, engines: Mapping[str, Engine]) -> Iterator[tuple[str, Tensor]]:
        """Yield this rank's tensors in host memory; the buffers are reused by the next save."""
        for name, engine in engines.items():
            for fragment in engine.fragments():
                kinds = fragment.views if self._kinds is None else self._kinds
                for kind in kinds:
                    view = fragment.views[kind]
                    key = f"{name}/{kind}/{fragment.name}@{fragment.start}"
                    if key not in self._host_buffers:
                        pin = view.device.type == "cuda"
                        buffer = torch.empty_like(view, device="cpu", pin_memory=pin)
                        self._host_buffers[key] = buffer
                    self._host_buffers[key].copy_(view, non_blocking=True)
                    yield key, self._host_buffers[key]
        if self.rank.device.type == "cuda":
            torch.cuda.synchronize(self.rank.device)

    def _write(
        self,
        folder: Path,
        own: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        extra: Mapping[str, Tensor],
    ) -> None:
        """Write this rank's files; rank 0 commits. Runs in a thread; `wait` raises its error."""
        try:
            with disk_errors(folder):
                write_rank_files(folder, self.rank.index, own, facts, extra)
                if not self.rank.is_main:
                    return
                ranks = wait_for_completion_files(folder, self.rank.world)
                if all(rank["finite"] for rank in ranks):
                    commit(folder, facts, ranks)
                    self._on_commit(facts["step"])
                    prune(self.folder, self.keep_latest, self.keep_interval)
                else:
                    self._log(f"checkpoint {folder.name} is dropped: a number is not finite")
                    remove(folder)
        except BaseException as error:
            self._error = error

    def _remove_uncommitted(self) -> list[str]:
        """Return the names of the committed checkpoints, and remove the others."""
        make_folder(self.folder)
        committed = []
        for path in sorted(self.folder.iterdir()):
            if (path / MANIFEST).exists():
                committed.append(path.name)
            else:
                remove(path)
        return committed


def write_rank_files(
    folder: Path,
    rank: int,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    extra: Mapping[str, Tensor],
) -> None:
    """Write one rank's tensors durably, and then its completion file.

    Raises:
        Failure: the disk is full or refuses.
    """
    make_folder(folder)
    files = [safetensors_io.write(folder / f"rank-{rank}.safetensors", tensors)]
    if rank == 0 and extra:
        files.append(safetensors_io.write(folder / EXTRA, extra))
    finite = all(map(safetensors_io.is_finite, tensors.values()))
    completion = {"files": files, "finite": finite, "step": facts["step"]}
    write_atomic(folder / f"rank-{rank}.json", json.dumps(completion))


def wait_for_completion_files(
    folder: Path, world: int, timeout: float = WRITE_TIMEOUT
) -> list[dict[str, Any]]:
    """Return the completion files of all ranks, as soon as all are there.

    Raises:
        Failure: one did not appear within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    paths = [folder / f"rank-{rank}.json" for rank in range(world)]
    while missing := [path.stem for path in paths if not path.exists()]:
        if time.monotonic() > deadline:
            raise Failure(f"{', '.join(missing)} did not write its files", where=str(folder))
        time.sleep(0.01)
    return [json.loads(path.read_text()) for path in paths]


def commit(folder: Path, facts: Mapping[str, Any], ranks: Sequence[Mapping[str, Any]]) -> None:
    """Write the manifest: from now on the checkpoint exists."""
    manifest = {**facts, "files": [file for rank in ranks for file in rank["files"]]}
    write_atomic(folder / MANIFEST, json.dumps({**manifest, "seal": _seal(manifest)}))


def prune(folder: Path, keep_latest: int, keep_interval: int = 0) -> None:
    """Remove all committed checkpoints except for the newest ones, the newest rollback target, and
    those of each multiple of `keep_interval` steps."""
    paths = sorted(path for path in folder.iterdir() if (path / MANIFEST).exists())
    committed = [Checkpoint(path, read_manifest(path)) for path in paths]
    rollback_targets = [checkpoint for checkpoint in committed if checkpoint.for_rollback]
    for checkpoint in committed[:-keep_latest]:
        step = checkpoint.step
        stays = bool(keep_interval) and step > 0 and step % keep_interval == 0
        if not stays and checkpoint not in rollback_targets[-1:]:
            remove(checkpoint.path)


def remove(path: Path) -> None:
    """Remove a checkpoint, its manifest first, so that a kill in between leaves none that counts.

    Raises:
        Failure: the disk refuses to remove the manifest.
    """
    with disk_errors(path):
        (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest; one that is damaged or missing lists itself as damaged.

    Raises:
        Failure: the disk refuses to read it, whatever its content is.
    """
    with disk_errors(folder / MANIFEST, to="read"):
        try:
            manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
            if manifest.pop("seal") == _seal(manifest):
                return manifest
        except (*NOT_FOUND, ValueError, KeyError, TypeError, AttributeError):
            pass
    return {"files": [{"name": MANIFEST, "size": -1, "sha256": ""}], "step": -1}


def _seal(manifest: Mapping[str, Any]) -> str:
    """Return a hash of the manifest's own content; it holds the hashes of the other files."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


class CheckpointReader:
    """Reader of a checkpoint by parameter and range, whatever ranks wrote it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._pieces: dict[str, list[tuple[int, int, SafetensorsFile, str]]] = {}
        for entry in checkpoint.manifest["files"]:
            if entry["name"] == EXTRA:
                continue
            file = SafetensorsFile(checkpoint.path / entry["name"])
            for key, count in file.counts.items():
                name, _, start = key.rpartition("@")
                self._pieces.setdefault(name, []).append((int(start), count, file, key))

    def check(self, engine: str, shapes: Mapping[str, Sequence[int]]) -> None:
        """Check that the checkpoint was saved from this module.

        Raises:
            Failure: names or shapes of parameters differ.
        """
        saved = self._checkpoint.manifest["engines"].get(engine, {"shapes": {}})["shapes"]
        own = {name: list(shape) for name, shape in shapes.items()}
        if saved != own:
            names = sorted(n for n in saved.keys() | own.keys() if saved.get(n) != own.get(n))
            raise Failure(
                f"the checkpoint is of another model: {engine} differs in {', '.join(names[:3])}",
                where=str(self._checkpoint.path),
                remedy="`headwater run --rerun` the stage to train from the start",
            )

    def read(self, name: str, start: int, count: int) -> Tensor:
        """Return `count` numbers of "<engine>/<kind>/<parameter>" from `start` on, flat.

        Raises:
            Failure: the checkpoint lacks some of them.
        """
        numbers, filled = torch.empty(count), 0
        for low, size, file, key in self._pieces.get(name, ()):
            a, b = max(start, low), min(start + count, low + size)
            if a < b:
                numbers[a - start : b - start] = file.read(key, a - low, b - low)
                filled += b - a
        if filled != count:
            raise Failure(
                f"{name}: {count - filled} numbers are missing", where=str(self._checkpoint.path)
            )
        return numbers

    def extra(self) -> State:
        """Return the named extra state."""
        path = self._checkpoint.path / EXTRA
        tensors = SafetensorsFile(path).read_all() if path.exists() else {}
        state: State = safetensors_io.join(self._checkpoint.manifest["extra"], tensors)
        return state


def _corruption_reason(path: Path, entry: Mapping[str, Any]) -> str:
    """Return the difference of a file from its entry in the manifest, or an empty text."""
    if not path.exists():
        return f"{path.name} is missing"
    if path.stat().st_size != entry["size"]:
        return f"{path.name} has {path.stat().st_size} bytes instead of {entry['size']}"
    return "" if hash_file(path) == entry["sha256"] else f"the bytes of {path.name} changed"
