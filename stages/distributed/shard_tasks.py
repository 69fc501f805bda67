"""Work over shards: one commit file each, so that a kill loses only what was in flight.

The function of a shard reads its work and writes its commit file whole; a shard whose commit
exists is never run again. With several workers on Ray the shards are tasks, as many in flight as
there are workers; else the same function runs here. Neither the number of workers nor a kill can
change a byte.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipeline.context import Context
from pipeline.errors import HeadwaterError, WorkerDied
from pipeline.stage import Workers

Work = TypeVar("Work")
ShardFunction = Callable[[Work, Path], None]
"""Reads the work and writes the commit file atomically."""


class HasSize(Protocol):
    """Anything with a size in bytes."""

    @property
    def size(self) -> int:
        """Size, bytes."""


Item = TypeVar("Item", bound=HasSize)

_RETRIES = 3  # of a shard whose worker died: it is idempotent and cheap


def group_by_size(items: Iterable[Item], limit: int) -> list[list[Item]]:
    """Group consecutive items of up to `limit` bytes together, at least one item per group."""
    groups: list[list[Item]] = []
    remaining = 0
    for item in items:
        if not groups or item.size > remaining:
            groups.append([])
            remaining = limit
        groups[-1].append(item)
        remaining -= item.size
    return groups


def run_shards(
    function: ShardFunction[Work],
    works: Sequence[Work],
    folder: Path,
    *,
    workers: Workers,
    ctx: Context,
    on_commit: Callable[[int], None] = lambda index: None,
    enough: Callable[[int], bool] = lambda leading: False,
    shared: Path | None = None,
) -> list[Path]:
    """Carry out every shard that has no commit yet.

    Args:
        function: a module-level function; it runs in other processes.
        works: what each shard gets, in order; sent to a worker when the shard starts.
        folder: where commit files go, named by position.
        workers: how many run at once, and what each needs.
        ctx: cancellation is checked between shards.
        on_commit: called with a shard's position when its commit exists.
        enough: asked with the number of leading shards that are committed; true ends the work
            early (a cap on the corpus is reached).
        shared: a folder of the store's cache that keeps a second name of every commit, for stages
            to come that have the same work; its name must identify the work.

    Returns:
        The commit files of the leading shards, up to where it was enough.

    Raises:
        Interrupted: the run was cancelled; commits stay.
        WorkerDied: a worker process vanished again and again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    commits = [folder / f"{index:06d}" for index in range(len(works))]
    if shared is not None:
        shared.mkdir(parents=True, exist_ok=True)
        for commit in commits:
            _second_name(shared / commit.name, commit)
    done = {index for index, commit in enumerate(commits) if commit.exists()}
    for index in sorted(done):
        on_commit(index)
    leading = _leading(done, 0)
    todo = [index for index in range(len(works)) if index not in done]
    if todo and not enough(leading):
        carry_out = _on_ray if workers.num > 1 and _ray_is_up() else _here
        running = carry_out(function, works, commits, todo, workers)
        try:
            for index in running:
                done.add(index)
                if shared is not None:
                    _second_name(commits[index], shared / commits[index].name)
                on_commit(index)
                leading = _leading(done, leading)
                if enough(leading):
                    break
                ctx.check_cancelled()
        finally:
            running.close()
    return commits[:leading]


def _second_name(file: Path, name: Path) -> None:
    """Give a file another name in the same store: either may be deleted, and the other stays."""
    with suppress(FileNotFoundError, FileExistsError, PermissionError):
        os.link(file, name)


def _leading(done: set[int], start: int) -> int:
    while start in done:
        start += 1
    return start


def _ray_is_up() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


Running = Iterator[int]


def _here(
    function: ShardFunction[Any],
    works: Sequence[Any],
    commits: Sequence[Path],
    todo: Sequence[int],
    workers: Workers,
) -> Any:
    for index in todo:
        function(works[index], commits[index])
        yield index


def _on_ray(
    function: ShardFunction[Any],
    works: Sequence[Any],
    commits: Sequence[Path],
    todo: Sequence[int],
    workers: Workers,
) -> Any:
    """Never more tasks in flight than workers: the runner admitted the stage with just those."""
    import ray

    task = ray.remote(function).options(
        num_cpus=workers.cpus, num_gpus=workers.gpus, max_retries=_RETRIES
    )
    waiting = list(reversed(todo))
    flying: dict[Any, int] = {}
    try:
        while waiting or flying:
            while waiting and len(flying) < workers.num:
                index = waiting.pop()
                flying[task.remote(works[index], commits[index])] = index
            ready, _ = ray.wait(list(flying), num_returns=1)
            _result(ready[0])
            yield flying.pop(ready[0])
    finally:
        for reference in flying:
            ray.cancel(reference, force=True)


def _result(reference: Any) -> None:
    """Wait for a task and raise its own error, not the wrapper that it crossed processes in."""
    import ray

    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, HeadwaterError):
            raise error.cause from None
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise WorkerDied(
            f"a worker died {_RETRIES + 1} times on one shard: {error}",
            remedy="give each worker more memory, or run fewer at once (workers.num)",
        ) from error
