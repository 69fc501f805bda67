"""Shards: each made once, a prefix when it is enough, and nothing lost to a failure."""

import pytest

from pipeline.atomic_io import write_atomic
from pipeline.context import Context
from pipeline.errors import Interrupted
from pipeline.stage import Workers
from stages.distributed.shard_tasks import run_shards

CALLS = []


def square(work, commit):
    CALLS.append(work)
    if work == 13:
        raise ValueError("unlucky")
    write_atomic(commit, str(work * work), durable=False)


@pytest.fixture
def ctx(tmp_path):
    CALLS.clear()
    return Context.local(tmp_path)


def run(ctx, works, **options):
    return run_shards(square, works, ctx.scratch / "s", workers=Workers(), ctx=ctx, **options)


def test_commit_files_are_named_by_position(ctx):
    seen = []
    commits = run(ctx, [3, 1, 2], on_commit=seen.append)
    assert [int(c.read_text()) for c in commits] == [9, 1, 4] and seen == [0, 1, 2]


def test_finished_shards_are_not_run_again(ctx):
    with pytest.raises(ValueError, match="unlucky"):
        run(ctx, [1, 2, 13, 4])
    assert CALLS == [1, 2, 13]
    seen = []
    assert len(run(ctx, [1, 2, 5, 4], on_commit=seen.append)) == 4
    assert CALLS == [1, 2, 13, 5, 4] and seen == [0, 1, 2, 3]


def test_enough_ends_after_a_prefix(ctx):
    assert len(run(ctx, list(range(9)), enough=lambda leading: leading >= 4)) == 4
    assert CALLS == [0, 1, 2, 3]
    assert len(run(ctx, list(range(9)), enough=lambda leading: leading >= 4)) == 4
    assert CALLS == [0, 1, 2, 3]


def test_cancellation_keeps_finished_shards(ctx):
    def cancel(shard):
        if shard == 1:
            ctx.cancel_file.touch()

    with pytest.raises(Interrupted):
        run(ctx, [1, 2, 3], on_commit=cancel)
    assert CALLS == [1, 2]
    ctx.cancel_file.unlink()
    assert len(run(ctx, [1, 2, 3])) == 3 and CALLS == [1, 2, 3]
