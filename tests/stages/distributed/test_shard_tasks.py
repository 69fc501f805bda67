"""Shards: each made once, a prefix when it is enough, and nothing lost to a failure."""

import shutil

import pytest

from pipeline.atomic_io import write_atomic
from pipeline.context import Context
from pipeline.errors import Interrupted
from pipeline.stage import Workers
from stages.distributed.shard_tasks import run_shards, share_commits

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


def with_sidecar(work, commit):
    CALLS.append(work)
    sidecar = commit.with_name(f"{commit.name}.bin")
    write_atomic(sidecar, f"ids of {work}", durable=False)
    write_atomic(commit, str(work), durable=False)
    return [sidecar]


def flip_bit(file, position=0, bit=0):
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["000001", "000001.bin", "000001.seal"])
def test_a_shard_with_a_flipped_bit_is_made_again(ctx, name):
    def run():
        return run_shards(with_sidecar, [5, 6, 7], ctx.scratch / "s", workers=Workers(), ctx=ctx)

    commits = run()
    contents = {file.name: file.read_bytes() for file in (ctx.scratch / "s").iterdir()}
    assert run() == commits and CALLS == [5, 6, 7]
    for position in range(len(contents[name])):
        CALLS.clear()
        flip_bit(ctx.scratch / "s" / name, position, position % 8)
        assert run() == commits and CALLS == [6]
        assert {file.name: file.read_bytes() for file in (ctx.scratch / "s").iterdir()} == contents
    assert "produced again" in (ctx.attempt_dir / "log.txt").read_text()


def test_a_commit_without_a_seal_is_made_again(ctx):
    run(ctx, [2])
    (ctx.scratch / "s" / "000000.seal").unlink()  # a kill between the two
    run(ctx, [2])
    assert CALLS == [2, 2]


@pytest.mark.parametrize("damage", ["", "000001", "000001.seal"])
def test_shared_commits_are_reused_if_they_are_intact(ctx, damage):
    shared = ctx.cache / "squares"
    share_commits(run(ctx, [1, 2, 3]), shared)
    (ctx.scratch / "s").rename(ctx.scratch / "another stage")
    CALLS.clear()
    if damage:
        flip_bit(shared / damage)
    for again in ([2], []) if damage else ([], []):
        commits = run(ctx, [1, 2, 3], shared=shared)
        assert [int(c.read_text()) for c in commits] == [1, 4, 9] and again == CALLS
        share_commits(commits, shared)
        shutil.rmtree(ctx.scratch / "s")
        CALLS.clear()


def test_processes_of_this_machine_write_the_same_commits(ctx):
    works = [3, 1, 2, 5]
    alone = [commit.read_bytes() for commit in run(ctx, works)]
    CALLS.clear()
    commits = run_shards(square, works, ctx.scratch / "p", workers=Workers(), ctx=ctx, processes=2)
    assert [commit.read_bytes() for commit in commits] == alone
    assert CALLS == []


def test_an_error_of_a_process_is_its_own(ctx):
    with pytest.raises(ValueError, match="unlucky"):
        run(ctx, [1, 13], processes=2)
