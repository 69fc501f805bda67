"""Checkpoints that know no topology: weights and moments by parameter name, in safetensors.

    <folder>/000007-step-00000200/       save number and step
        rank-0.safetensors               what rank 0 owned: "<engine>/<kind>/<parameter>@<start>"
        rank-0.json                      its size, sha256, and whether all numbers were finite
        extra.safetensors                tensors of the objective's named extra state
        manifest.json                    last; the commit: without it the folder does not exist

Each rank writes its own share in the background, from a copy in host memory, so that training
goes on. There is no collective in it: rank 0 waits for the other ranks' notes to appear, then
writes the manifest. A save with a number that is not finite is never committed. The newest folder
whose hashes hold is the one to resume from; a damaged one is passed over, and said so. An anchor
is one that training may go back to: it does not depend on when somebody stopped the run.

Torch's generators need no place here: the loop seeds them from (seed, step, rank).
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
from stages.training import safetensors_io
from stages.training.zero_state import Fragment

if TYPE_CHECKING:
    from stages.training.engine import Engine
    from stages.training.objective import State
    from stages.training.ranks.rank import Rank

SCHEMA = 1
MANIFEST = "manifest.json"
EXTRA = "extra.safetensors"
PATIENCE = 900.0
"""Seconds that rank 0 waits for the other ranks' shares, and every rank for its disk; after that
the watchdog may find it stuck."""
TICK = 0.1
"""Seconds between two signs of life while waiting for a save."""


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Steps that were done."""
        return int(self.manifest["step"])

    @property
    def anchor(self) -> bool:
        """Whether training may go back to it."""
        return bool(self.manifest.get("anchor", False))

    def problems(self, share: int = 0, of: int = 1) -> list[str]:
        """What differs from what was written, looking at every `of`-th file from `share` on."""
        return [
            problem
            for file in self.manifest["files"][share::of]
            if (problem := _damage(self.path / file["name"], file))
        ]


class Checkpoints:
    """Saves and finds the checkpoints of one training run, on every rank alike."""

    def __init__(
        self,
        folder: Path,
        rank: Rank,
        keep: int,
        say: Callable[[str], None] = lambda _: None,
        committed: Callable[[int], None] = lambda _: None,
        checkpoint_keep_interval: int = 0,
    ) -> None:
        self.folder = folder
        self.rank = rank
        self.keep = keep
        self.checkpoint_keep_interval = checkpoint_keep_interval
        self.saved_step = -1
        """The step of the newest save, or of what `newest` found."""
        self._say = say
        self._committed = committed
        self._serial = 0
        self._job: threading.Thread | None = None
        self._error: BaseException | None = None
        self._host: dict[str, Tensor] = {}

    def newest(self, *, anchor: bool = False) -> Saved | None:
        """The newest checkpoint (or anchor) whose bytes are those that were written.

        The ranks share the hashing. What is damaged or was never committed is removed.
        """
        self.wait()
        names = self.rank.broadcast(self._tidy() if self.rank.is_main else None)
        self._serial = 1 + max((int(name.split("-")[0]) for name in names), default=0)
        for name in reversed(names):
            saved = Saved(self.folder / name, read_manifest(self.folder / name))
            if anchor and not saved.anchor:
                continue
            found = self.rank.all_gather_object(saved.problems(self.rank.index, self.rank.world))
            bad = [problem for problems in found for problem in problems]
            if not bad:
                self.saved_step = saved.step
                return saved
            for problem in bad:
                self._say(f"checkpoint {name} is damaged: {problem}")
            self._say(f"falling back from checkpoint {name} to the one before")
            if self.rank.is_main:
                remove(saved.path)
        return None

    def save(
        self, step: int, engines: Mapping[str, Engine], extra: State, *, anchor: bool = False
    ) -> None:
        """Copy to host memory, and write in the background.

        Args:
            step: steps that are done.
            engines: what is trained.
            extra: more state, alike on all ranks (rank 0's is written).
            anchor: training may go back to it.

        Raises:
            Failure: an earlier save could not be written.
        """
        self.wait()
        folder = self.folder / f"{self._serial:06d}-step-{step:08d}"
        self._serial += 1
        self.saved_step = step
        share = dict(self._copies(engines))
        facts = {
            "schema": SCHEMA,
            "step": step,
            "anchor": anchor,
            "layout": {
                "world": self.rank.world,
                "zero": {n: e.zero_stage for n, e in engines.items()},
            },
            "engines": {
                name: {"updates": engine.updates, "shapes": engine.shapes}
                for name, engine in engines.items()
            },
        }
        values, loose = safetensors_io.split(extra)
        loose = {name: value.detach().cpu().clone() for name, value in loose.items()}
        self._job = threading.Thread(
            target=self._guard, args=(folder, share, {**facts, "extra": values}, loose), daemon=True
        )
        self._job.start()

    def wait(self) -> None:
        """Until the save in progress is committed. All ranks call it, and leave it together.

        Raises:
            Failure: it could not be written.
        """
        if self._job is None:
            return
        self._watch(self._job)
        self._job = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        self.rank.barrier()

    def _watch(self, job: threading.Thread) -> None:
        """Wait for a thread, and tell the watchdog so, within reason."""
        deadline = time.monotonic() + PATIENCE
        while job.is_alive() and time.monotonic() < deadline:
            job.join(TICK)
            self.rank.heartbeat_waiting()
        job.join()

    def load(self, saved: Saved, engines: Mapping[str, Engine]) -> State:
        """Fill the engines and return the extra state.

        Raises:
            Failure: it was saved from other modules, or lacks numbers.
        """
        reader = Reader(saved)
        for name, engine in engines.items():
            reader.check(name, engine.shapes)
            facts = saved.manifest["engines"][name]

            def read(fragment: Fragment, kind: str, name: str = name) -> Tensor:
                return reader.read(f"{name}/{kind}/{fragment.name}", fragment.start, fragment.count)

            engine.state.load(read, updates=facts["updates"])
        return reader.extra()

    def _copies(self, engines: Mapping[str, Engine]) -> Iterator[tuple[str, Tensor]]:
        """This rank's share in host memory; the buffers are kept for the next save."""
        for name, engine in engines.items():
            for fragment in engine.fragments():
                for kind, view in fragment.views.items():
                    key = f"{name}/{kind}/{fragment.name}@{fragment.start}"
                    if key not in self._host:
                        pin = view.device.type == "cuda"
                        self._host[key] = torch.empty_like(view, device="cpu", pin_memory=pin)
                    self._host[key].copy_(view, non_blocking=True)
                    yield key, self._host[key]
        if self.rank.device.type == "cuda":
            torch.cuda.synchronize(self.rank.device)

    def _guard(self, folder: Path, *rest: Any) -> None:
        try:
            with disk_errors(folder):
                write_share(folder, self.rank.index, *rest)
                if self.rank.is_main and self._commit(folder, rest[1]):
                    self._committed(rest[1]["step"])
                    prune(self.folder, self.keep, self.checkpoint_keep_interval)
        except BaseException as error:
            self._error = error

    def _commit(self, folder: Path, facts: Mapping[str, Any]) -> bool:
        notes = gather_notes(folder, self.rank.world)
        if all(note["finite"] for note in notes):
            commit(folder, facts, notes)
            return True
        self._say(f"checkpoint {folder.name} is not kept: it holds numbers that are not finite")
        remove(folder)
        return False

    def _tidy(self) -> list[str]:
        """The names of the committed checkpoints; what was never committed is removed."""
        make_folder(self.folder)
        committed = []
        for path in sorted(self.folder.iterdir()):
            if (path / MANIFEST).exists():
                committed.append(path.name)
            else:
                remove(path)
        return committed


def write_share(
    folder: Path,
    rank: int,
    share: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    extra: Mapping[str, Tensor],
) -> None:
    """Write one rank's tensors, durably, and the note that says they are there.

    Raises:
        Failure: the disk is full or refuses.
    """
    make_folder(folder)
    files = [safetensors_io.write(folder / f"rank-{rank}.safetensors", share)]
    if rank == 0 and extra:
        files.append(safetensors_io.write(folder / EXTRA, extra))
    finite = all(map(safetensors_io.finite, share.values()))
    note = {"files": files, "finite": finite, "step": facts["step"]}
    write_atomic(folder / f"rank-{rank}.json", json.dumps(note))


def gather_notes(folder: Path, world: int, patience: float = PATIENCE) -> list[dict[str, Any]]:
    """Every rank's note, as soon as all are there.

    Raises:
        Failure: a rank's note did not come in time.
    """
    deadline = time.monotonic() + patience
    paths = [folder / f"rank-{rank}.json" for rank in range(world)]
    while missing := [path.stem for path in paths if not path.exists()]:
        if time.monotonic() > deadline:
            raise Failure(f"{', '.join(missing)} did not write a share", where=str(folder))
        time.sleep(0.01)
    return [json.loads(path.read_text()) for path in paths]


def commit(folder: Path, facts: Mapping[str, Any], notes: Sequence[Mapping[str, Any]]) -> None:
    """Write the manifest: from now on the checkpoint exists."""
    manifest = {**facts, "files": [file for note in notes for file in note["files"]]}
    write_atomic(folder / MANIFEST, json.dumps({**manifest, "seal": _seal(manifest)}))


def prune(folder: Path, keep: int, every: int = 0) -> None:
    """Remove all but the newest `keep` committed checkpoints, the newest anchor, and those of each
    `every`-th step."""
    paths = sorted(path for path in folder.iterdir() if (path / MANIFEST).exists())
    committed = [Saved(path, read_manifest(path)) for path in paths]
    anchors = [saved for saved in committed if saved.anchor]
    for saved in committed[:-keep]:
        stays = bool(every) and saved.step > 0 and saved.step % every == 0
        if not stays and saved not in anchors[-1:]:
            remove(saved.path)


def remove(path: Path) -> None:
    """Remove a checkpoint, its commit first: a kill in between leaves no half of one.

    Raises:
        Failure: the disk refuses to let the commit go.
    """
    with disk_errors(path):
        (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a checkpoint holds; a manifest that is spoilt or gone lists itself as damaged.

    Raises:
        Failure: the disk does not let it be read, which says nothing of what it holds.
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
    """A hash of the manifest's own content: it holds the others' hashes, and nobody its."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


class Reader:
    """Numbers of a checkpoint by parameter and place, wherever the ranks of then put them."""

    def __init__(self, saved: Saved) -> None:
        self._saved = saved
        self._files = [
            safetensors_io.Source(saved.path / file["name"])
            for file in saved.manifest["files"]
            if file["name"] != EXTRA
        ]
        self._places: dict[str, list[tuple[int, int, safetensors_io.Source, str]]] = {}
        for file in self._files:
            for key, count in file.sizes.items():
                name, _, start = key.rpartition("@")
                self._places.setdefault(name, []).append((int(start), count, file, key))

    def check(self, engine: str, shapes: Mapping[str, Sequence[int]]) -> None:
        """See that the checkpoint is one of this module.

        Raises:
            Failure: names or shapes differ.
        """
        there = self._saved.manifest["engines"].get(engine, {"shapes": {}})["shapes"]
        here = {name: list(shape) for name, shape in shapes.items()}
        if there != here:
            odd = sorted(n for n in there.keys() | here.keys() if there.get(n) != here.get(n))
            raise Failure(
                f"the checkpoint is of another model: {engine} differs in {', '.join(odd[:3])}",
                where=str(self._saved.path),
                remedy="`headwater run --rerun` the stage to train from the start",
            )

    def read(self, name: str, start: int, count: int) -> Tensor:
        """`count` numbers of "<engine>/<kind>/<parameter>" from `start` on, flat.

        Raises:
            Failure: some of them are nowhere.
        """
        found, filled = torch.empty(count), 0
        for low, size, file, key in self._places.get(name, ()):
            a, b = max(start, low), min(start + count, low + size)
            if a < b:
                found[a - start : b - start] = file.read(key, a - low, b - low)
                filled += b - a
        if filled != count:
            raise Failure(
                f"{name}: {count - filled} numbers are missing", where=str(self._saved.path)
            )
        return found

    def extra(self) -> State:
        """The named extra state."""
        path = self._saved.path / EXTRA
        loose = safetensors_io.Source(path).everything() if path.exists() else {}
        joined: State = safetensors_io.join(self._saved.manifest["extra"], loose)
        return joined


def _damage(path: Path, file: Mapping[str, Any]) -> str:
    if not path.exists():
        return f"{path.name} is missing"
    if path.stat().st_size != file["size"]:
        return f"{path.name} has {path.stat().st_size} bytes instead of {file['size']}"
    return "" if hash_file(path) == file["sha256"] else f"the bytes of {path.name} changed"
