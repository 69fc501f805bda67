"""Tasks over shards with one commit file each, so that a kill loses only the tasks in flight.

The function of a shard writes its commit file atomically, which is then sealed
(`stages.distributed.commit_seals`); a shard whose commit is intact is not run again. With several
workers, shards run as Ray tasks, at most one per worker at a time; otherwise in this process, or
in processes of this machine. Neither the number of workers nor a kill changes a byte of the
results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipeline.context import Context
from pipeline.errors import HeadwaterError, WorkerDied
from pipeline.stage import Workers
from stages.distributed.commit_seals import is_intact, link_commit, write_seal

Work = TypeVar("Work")
ShardFunction = Callable[[Work, Path], Sequence[Path] | None]
"""Takes the input of a shard, writes its commit file atomically, and returns the other files that
it wrote, if any."""


class HasSize(Protocol):
    """Anything with a size in bytes."""

    @property
    def size(self) -> int:
        """Size, bytes."""


Item = TypeVar("Item", bound=HasSize)

_RETRIES = 3  # of a shard whose worker died; shards are idempotent and short


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
    processes: int = 1,
) -> list[Path]:
    """Run every shard that has no intact commit file yet.

    Args:
        function: a module-level function; it runs in other processes.
        works: input of each shard, in order; sent to a worker when its shard starts.
        folder: folder of the commit files, which are named by position.
        workers: number of workers, and the resources of each.
        ctx: context of the stage; cancellation is checked between shards.
        on_commit: called with the position of a shard when its commit file exists.
        enough: called with the number of leading finished shards; if it returns true, the remaining
            ones are skipped (a limit is reached).
        shared: folder in the cache of the store with commits of an earlier stage with the same
            work (see `share_commits`), which are reused if they are intact.
        processes: number of processes on this machine if the shards do not run on Ray; 1 is this
            one.

    Returns:
        The commit files of the leading finished shards.

    Raises:
        Interrupted: the run was cancelled; commit files remain.
        WorkerDied: a worker process died repeatedly on one shard.
    """
    folder.mkdir(parents=True, exist_ok=True)
    commits = [folder / f"{index:06d}" for index in range(len(works))]
    done = _find_intact(commits, shared, ctx)
    for index in sorted(done):
        on_commit(index)
    leading = _count_leading(done, 0)
    todo = [index for index in range(len(works)) if index not in done]
    if todo and not enough(leading):
        run, local = _run_here, workers.model_copy(update={"num": min(processes, len(todo))})
        if workers.num > 1 and _is_ray_running():
            run, local = _run_on_ray, workers
        elif local.num > 1:
            run = _run_in_processes
        running = run(function, works, commits, todo, local)
        try:
            for index in running:
                done.add(index)
                on_commit(index)
                leading = _count_leading(done, leading)
                if enough(leading):
                    break
                ctx.check_cancelled()
        finally:
            running.close()
    return commits[:leading]


def _find_intact(commits: Sequence[Path], shared: Path | None, ctx: Context) -> set[int]:
    """Return the positions of the intact commits, those that are linked from the cache included."""
    done, damaged = set(), 0
    for index, commit in enumerate(commits):
        for file in [commit, *([shared / commit.name] if shared else [])]:
            existed = file.exists()
            if is_intact(file):
                if file is not commit:
                    link_commit(file, commit.parent)
                if commit.exists():
                    done.add(index)
                    break
            damaged += existed
    if damaged:
        ctx.log(f"{damaged} commits of shards were incomplete or changed on disk: produced again")
    return done


def share_commits(commits: Iterable[Path], shared: Path) -> None:
    """Keep a second name of each commit in the cache of the store, for later stages with the same
    work.

    Args:
        commits: commit files without other files.
        shared: folder whose name identifies the work.
    """
    shared.mkdir(parents=True, exist_ok=True)
    for commit in commits:
        link_commit(commit, shared)


def _count_leading(done: set[int], start: int) -> int:
    while start in done:
        start += 1
    return start


def _is_ray_running() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


Running = Iterator[int]


def _run_here(
    function: ShardFunction[Any],
    works: Sequence[Any],
    commits: Sequence[Path],
    todo: Sequence[int],
    workers: Workers,
) -> Any:
    for index in todo:
        _run_and_seal(function, works[index], commits[index])
        yield index


def _run_and_seal(function: ShardFunction[Work], work: Work, commit: Path) -> None:
    write_seal(commit, function(work, commit) or ())


def _run_in_processes(
    function: ShardFunction[Any],
    works: Sequence[Any],
    commits: Sequence[Path],
    todo: Sequence[int],
    workers: Workers,
) -> Any:
    """Run the shards in `workers.num` fresh processes."""
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    with ProcessPoolExecutor(workers.num, get_context("spawn")) as pool:
        running = {
            pool.submit(_run_and_seal, function, works[index], commits[index]): index
            for index in todo
        }
        try:
            for done in as_completed(running):
                done.result()
                yield running[done]
        except BrokenProcessPool as error:
            raise WorkerDied(
                f"a process died on a shard: {error}", remedy="free memory of the machine"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _run_on_ray(
    function: ShardFunction[Any],
    works: Sequence[Any],
    commits: Sequence[Path],
    todo: Sequence[int],
    workers: Workers,
) -> Any:
    """Run at most `workers.num` tasks at a time, as many as the runner reserved resources for."""
    import ray

    task = ray.remote(_run_and_seal).options(
        num_cpus=workers.cpus, num_gpus=workers.gpus, max_retries=_RETRIES
    )
    pending = list(reversed(todo))
    in_flight: dict[Any, int] = {}
    try:
        while pending or in_flight:
            while pending and len(in_flight) < workers.num:
                index = pending.pop()
                in_flight[task.remote(function, works[index], commits[index])] = index
            ready, _ = ray.wait(list(in_flight), num_returns=1)
            _wait_for(ready[0])
            yield in_flight.pop(ready[0])
    finally:
        for reference in in_flight:
            ray.cancel(reference, force=True)


def _wait_for(reference: Any) -> None:
    """Wait for a task; re-raise its own error instead of the wrapper of Ray."""
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
            remedy="give each worker more memory, or lower workers.num",
        ) from error
