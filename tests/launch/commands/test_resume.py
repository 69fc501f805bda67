"""Options, sources and models that a continued run keeps."""

from __future__ import annotations

import pytest
from toy_runs import TWO_AND_SUM, events, make

from launch.commands.resume import derive_run
from pipeline.errors import NotFound
from pipeline.execution.plan import Plan
from pipeline.execution.run import Run
from pipeline.execution.runner import execute
from pipeline.stage import Stage
from pipeline.storage.store import Store

pytestmark = pytest.mark.usefixtures("toys")


def to_run(run: Run) -> list[str]:
    return [stage.name for stage in run.plan().stages if stage.action == "run"]


def forced(run: Run) -> list[str]:
    return [stage.name for stage in run.plan().stages if stage.rerun]


def test_nothing_new_is_the_same_run(store: Store) -> None:
    run = make(store, TWO_AND_SUM, only="b")
    assert derive_run(run, ()) is run


def test_a_changed_run_keeps_only(store: Store) -> None:
    run = make(store, TWO_AND_SUM, only="b")
    changed = derive_run(run, ("b.value=5",))
    assert changed.status().origin == run.id
    assert to_run(changed) == ["b"]
    assert to_run(derive_run(changed, ("b.value=6",))) == ["b"], "and so does the one after it"


def test_only_is_kept_where_nothing_else_is_left(store: Store) -> None:
    run = make(store, "a: {uses: toy.count}", only="a")
    assert run.plan().only == derive_run(run, ("a.value=3",)).plan().only == "a"


def test_a_changed_run_keeps_what_is_left_of_from(store: Store) -> None:
    run = make(store, TWO_AND_SUM, from_="b")
    assert forced(run) == ["b", "sum"]
    run.append("stage.finished", stage="b", fingerprint="0" * 16, metrics={})
    assert forced(derive_run(run, ("a.value=7",))) == ["sum"]
    assert forced(derive_run(run, ("a.value=8",), "a")) == ["a", "sum"]
    with pytest.raises(NotFound, match="no stage 'c'"):
        derive_run(run, (), "c")


def test_a_changed_run_keeps_strict_code(store: Store) -> None:
    assert not derive_run(make(store, TWO_AND_SUM), ("a.value=7",)).plan().strict_code
    run = make(store, TWO_AND_SUM, strict_code=True)
    changed = derive_run(run, ("a.value=7",))
    assert changed.plan().strict_code
    assert Plan.from_json(changed.plan().to_json()) == changed.plan()


def test_the_driver_of_a_resumed_run_keeps_its_options(store: Store) -> None:
    """Plan again as a resume does, which starts no launcher here because nothing can be run."""
    run = make(store, TWO_AND_SUM, only="a", strict_code=True)
    run.append("run.started", pid=1, host="elsewhere")
    run.cancel_file.touch()

    class Nowhere:
        def start(self) -> None:
            raise KeyboardInterrupt

        def close(self) -> None: ...

        def source_hash(self, stage: Stage) -> str:
            return ""

    execute(run, Nowhere())  # type: ignore[arg-type]
    assert len(events(run, "plan")) == 2
    assert (run.plan().only, run.plan().strict_code) == ("a", True)
    assert to_run(run) == ["a"]
