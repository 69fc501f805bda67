"""The runner's decisions, with real stages, stores and journals, and attempts in threads."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_runs import (
    DEADLINE,
    TWO_AND_SUM,
    digests,
    events,
    held,
    holds,
    make,
    numbers,
    states,
    until,
)

from pipeline.errors import Failure, GateRefused, HeadwaterError, LeaseLost, SpecError, UserError
from pipeline.execution.attempt import Job, Outcome, run_attempt
from pipeline.execution.resources import ResourcePool, Resources
from pipeline.execution.run import Run
from pipeline.execution.runner import execute, exit_code, plan_again
from pipeline.execution.stage_executor import RetryBudget
from pipeline.spec.spec_checker import spec_from_resolved
from pipeline.stage import Retries, Stage
from pipeline.status import RunStatus
from pipeline.storage.lease import Lease
from pipeline.storage.store import Store

pytestmark = pytest.mark.usefixtures("toys")


class Threads:
    """Attempts in threads of this process: same code as in a stage's own, nothing to start."""

    def __init__(self, cpus: float = 4, script: dict[tuple[str, int], Outcome] | None = None):
        self.nodes = [Resources(cpus)]
        self.script = script or {}
        self.before: Callable[[Job], None] = lambda job: None
        self.after: Callable[[Job], None] = lambda job: None
        self.starts = 0
        self.jobs: list[tuple[str, int]] = []
        self.closed = False
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    def start(self) -> list[Resources]:
        self.starts += 1
        return self.nodes

    def source_hash(self, stage: Stage) -> str:
        return ""

    def code(self, stage: Stage) -> dict[str, Any]:
        return {"commit": "b" * 40, "dirty": False, "source_hash": self.source_hash(stage)}

    def run(self, job: Job, stop: Callable[[], bool]) -> Outcome:
        with self._lock:
            self.jobs.append((job.stage, job.attempt))
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            self.before(job)
            outcome = self.script.get((job.stage, job.attempt)) or self._carry_out(job, stop)
            self.after(job)
            return outcome
        finally:
            with self._lock:
                self._now -= 1

    def _carry_out(self, job: Job, stop: Callable[[], bool]) -> Outcome:
        ended: list[Outcome] = []
        thread = threading.Thread(target=lambda: ended.append(run_attempt(job)), daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.01)
            if stop():
                return Outcome("killed", "it was killed")
        return ended[0]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Path]:
    """A file; stages with `hold` wait while it exists."""
    file = tmp_path / "hold"
    file.touch()
    yield file
    file.unlink(missing_ok=True)


def go(run: Run, launcher: Threads | None = None, **options: Any) -> RunStatus:
    options.setdefault("backoff", 0.001)
    return execute(run, launcher or Threads(), **options)


class Meanwhile:
    """A run carried out in another thread."""

    def __init__(self, run: Run, launcher: Threads | None = None, **options: Any) -> None:
        self.run = run
        self.error: BaseException | None = None
        self.status: RunStatus | None = None
        self._thread = threading.Thread(
            target=self._body, args=(launcher or Threads(), options), daemon=True
        )
        self._thread.start()

    def _body(self, launcher: Threads, options: Any) -> None:
        try:
            self.status = go(self.run, launcher, **options)
        except BaseException as error:
            self.error = error

    def end(self) -> str:
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        if self.error:
            raise self.error
        assert self.status
        return self.status.state


# --- the way through ---------------------------------------------------------------------------


def test_every_stage_is_made_once_its_inputs_are(store: Store) -> None:
    run, launcher = make(store, TWO_AND_SUM), Threads()
    status = go(run, launcher)
    assert status.state == "finished"
    assert numbers(run) == {"a": "10", "b": "14", "sum": "24"}
    assert launcher.jobs[-1] == ("sum", 1)
    assert sorted(launcher.jobs) == [("a", 1), ("b", 1), ("sum", 1)]
    assert (launcher.starts, launcher.closed) == (1, True)
    assert exit_code(run) == 0


def test_the_journal_tells_it_all(store: Store) -> None:
    run = make(store, "a: {uses: toy.count, value: 1}")
    go(run)
    kinds = [event["event"] for event in run.events()]
    assert kinds == [
        "run.created",
        "plan",
        "run.started",
        "stage.started",
        "stage.finished",
        "run.finished",
    ]
    finished = events(run, "stage.finished")[0]
    artifact = store.latest_readable("toy.count", finished["fingerprint"])
    assert artifact
    assert finished["digest"] == artifact.digest
    assert finished["metrics"] == {"total": 10.0}
    assert artifact.manifest["run"] == {"id": run.id, "stage": "a", "attempt": 1}


def test_a_stage_receives_its_planned_externals(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "number.txt"
    source.write_text("3")
    run = make(store, f"a: {{uses: toy.read, source: {source}}}")
    go(run)
    planned = run.payload("a")["externals"][str(source)]
    assert f"planned as {planned}" in (run.attempt_dir("a", 1) / "log.txt").read_text()


@pytest.mark.parametrize("when", ["before its stage starts", "while its stage reads"])
def test_a_source_that_is_edited_after_the_plan_is_refused_and_planned_again(
    store: Store, tmp_path: Path, when: str
) -> None:
    source = tmp_path / "number.txt"
    source.write_text("3")
    edited = ", edited: '4'" if when.startswith("while") else ""
    run = make(store, f"a: {{uses: toy.read, source: {source}{edited}}}")
    first = run.plan().stages[0].fingerprint
    source.write_text("3" if edited else "4")
    assert go(run).state == "failed"
    assert exit_code(run) == 2
    (failed,) = events(run, "stage.failed")
    assert failed["error"] == f"a: {source} changed since the run was planned"
    assert failed["remedy"].startswith(f"`headwater resume {run.id}`")
    assert not list(store.artifacts())
    assert not store.work("toy.read", first).exists()  # no later run reads what was made of "4"

    assert go(run).state == "finished"
    assert numbers(run) == {"a": "4"}
    assert run.plan().stages[0].fingerprint != first
    source.write_text("3")
    run = make(store, f"a: {{uses: toy.read, source: {source}}}")
    assert run.plan().stages[0].action == "run"
    go(run)
    assert numbers(run) == {"a": "3"}


def test_what_is_cached_starts_nothing(store: Store) -> None:
    go(make(store, TWO_AND_SUM))
    again, launcher = make(store, TWO_AND_SUM), Threads()
    assert go(again, launcher).state == "finished"
    assert launcher.starts == 0
    assert states(again) == {"a": "cached", "b": "cached", "sum": "cached"}
    assert exit_code(again) == 0


def test_a_cached_run_imports_neither_ray_nor_anything_heavy(store: Store, toys: Path) -> None:
    go(make(store, TWO_AND_SUM))
    again = make(store, TWO_AND_SUM)
    program = (
        "import sys\nfrom pipeline.storage.store import Store\n"
        "from pipeline.execution.run import Run\n"
        "from launch.ray_launcher import RayLauncher\n"
        "from pipeline.execution.runner import execute\n"
        "store = Store(sys.argv[1])\n"
        "print(execute(Run.find(store), RayLauncher()).state)\n"
        "print({'ray', 'torch', 'mlflow', 'numpy'} & set(sys.modules))\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(store.root)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(toys), "PATH": ""},
        check=False,
    )
    assert said.stdout == "finished\nset()\n", said.stderr
    assert again.status().state == "finished"


def test_independent_stages_run_side_by_side(store: Store, hold: Path) -> None:
    held = "".join(f"{n}: {{uses: toy.count, value: {v}, hold: {hold}}}\n" for n, v in ("a1", "b2"))
    meanwhile = Meanwhile(make(store, held))
    until(lambda: holds(meanwhile.run, "a") and holds(meanwhile.run, "b"))
    assert states(meanwhile.run) == {"a": "running", "b": "running"}
    hold.unlink()
    assert meanwhile.end() == "finished"


def test_two_names_for_one_thing_make_it_once(store: Store) -> None:
    run, launcher = make(store, "a: {uses: toy.count}\nb: {uses: toy.count}"), Threads()
    assert go(run, launcher).state == "finished"
    assert len(launcher.jobs) == 1
    assert sorted(states(run).values()) == ["cached", "finished"]


def test_stages_left_out_are_skipped(store: Store) -> None:
    run = make(store, TWO_AND_SUM, only="a")
    assert go(run).state == "finished"
    assert states(run) == {"a": "finished", "b": "skipped", "sum": "skipped"}


def test_a_forced_stage_makes_a_new_generation_once(store: Store) -> None:
    go(make(store, TWO_AND_SUM))
    forced = make(store, TWO_AND_SUM, rerun=["a"])
    launcher = Threads()
    assert go(forced, launcher).state == "finished"
    assert launcher.jobs == [("a", 1)]
    assert Path(forced.status().stages[0].path).name.endswith(".2")
    assert go(forced, launcher).state == "finished"
    assert launcher.jobs == [("a", 1)]


def test_a_resumed_run_keeps_the_model_that_it_began_with(store: Store) -> None:
    first = make(store, TWO_AND_SUM)
    go(first)
    before, after = (store.find("toy.count", made(store, first, n).name) for n in "ab")
    assert before and after
    model = [before]
    run = make(
        store,
        "sum: {uses: toy.add, numbers: ['model:toy@champion']}",
        resolve_model=lambda ref: model[0],
    )
    assert go(run, Threads(script={("sum", 1): Outcome("error", "once")})).state == "failed"
    model[0] = after
    assert go(run).state == "finished"
    assert numbers(run) == {"sum": "10"}


def test_a_continued_run_resolves_only_models_that_are_new(store: Store) -> None:
    first = make(store, TWO_AND_SUM)
    go(first)
    a, b = (store.find("toy.count", made(store, first, name).name) for name in "ab")
    assert a and b
    numbers_of = "sum: {uses: toy.add, numbers: ['model:toy@champion']}"
    run = make(store, numbers_of, resolve_model=lambda ref: a)
    both = {"sum": {"uses": "toy.add", "numbers": ["model:toy@champion", "model:new@champion"]}}
    spec = spec_from_resolved({**run.resolved(), "stages": both})
    plan = plan_again(run, spec, lambda stage: "", resolve_model=lambda ref: b)
    used = [source["fingerprint"] for source in plan.stages[0].inputs["numbers"]]
    assert used == [a.fingerprint, b.fingerprint]


# --- resources ---------------------------------------------------------------------------------


def test_stages_wait_for_resources(store: Store) -> None:
    stages = "".join(f"s{v}: {{uses: toy.count, value: {v}}}\n" for v in range(4))
    launcher = Threads(cpus=2)
    assert go(make(store, stages), launcher).state == "finished"
    assert launcher.most <= 2


def test_what_can_never_fit_is_refused_before_anything_starts(store: Store) -> None:
    stages = """
    a: {uses: toy.count}
    b: {uses: toy.count, value: 1, workers: {num: 3, cpus: 2}}
    """
    run, launcher = make(store, stages), Threads(cpus=4)
    with pytest.raises(UserError, match="3 times 2 CPUs and 0 GPUs, each on one node; 2 fit"):
        go(run, launcher)
    assert launcher.jobs == []
    assert launcher.closed
    assert run.status().state == "failed"
    assert exit_code(run) == 2
    assert "b.workers" in events(run, "run.finished")[0]["error"]


def test_a_gpu_that_no_node_has_is_refused_by_its_key(store: Store) -> None:
    run = make(store, "a: {uses: toy.count, workers: {num: 2, gpus: 1}}")
    message = r"a\.workers\.gpus: requests 1 GPUs per process; the largest node has 0 \(set a\."
    with pytest.raises(UserError, match=message):
        go(run, Threads(cpus=4))


@pytest.mark.parametrize(
    ("workers", "fits"),
    [
        ("{num: 1, cpus: 4}", False),
        ("{num: 2, cpus: 2}", False),
        ("{num: 5, cpus: 1}", True),
        ("{num: 1, cpus: 2, gpus: 1}", False),
        ("{num: 1, cpus: 1, gpus: 1}", True),
        ("{num: 20, cpus: 0.25}", True),
    ],
)
def test_a_process_needs_one_node_that_holds_it(store: Store, workers: str, fits: bool) -> None:
    run, launcher = make(store, f"a: {{uses: toy.count, workers: {workers}}}"), Threads()
    launcher.nodes = [Resources(3), Resources(1), Resources(1, 1)]
    if fits:
        assert go(run, launcher).state == "finished"
    else:
        with pytest.raises(SpecError, match=r"a\.workers: requests"):
            go(run, launcher)
        assert (launcher.jobs, events(run, "stage.started")) == ([], [])
    assert launcher.closed


def test_resources_are_compared_by_kind() -> None:
    assert Resources(4, 1).fits(Resources(4, 1))
    assert not Resources(4, 0).fits(Resources(1, 1))
    assert not Resources(0.9, 9).fits(Resources(1, 1))
    assert str(Resources(1.5) + Resources(1, 2) - Resources(0.5)) == "2 CPUs and 2 GPUs"


def test_a_waiter_for_resources_can_give_up() -> None:
    pool = ResourcePool(Resources(1))
    with pool.reserve(Resources(1), lambda: False) as first:
        assert first
        with pool.reserve(Resources(1), lambda: True) as second:
            assert not second
    with pool.reserve(Resources(1), lambda: False) as third:
        assert third


# --- failures ----------------------------------------------------------------------------------


def test_budgets_by_class() -> None:
    budget = RetryBudget(Retries(worker=2, error=1), backoff=1.0)
    assert budget.pause("user") is None
    assert budget.pause("worker") == 1.0
    assert budget.pause("error") == 2.0
    assert budget.pause("error") is None
    assert budget.pause("preempted") == 4.0
    assert budget.pause("worker") == 8.0
    assert budget.pause("worker") is None
    assert [budget.pause("preempted") for _ in range(4)] == [16.0, 32.0, 60.0, 60.0]


def scripted(*endings: str) -> Threads:
    outcomes = {("a", n): Outcome(e, f"it ended: {e}") for n, e in enumerate(endings, 1)}  # type: ignore[arg-type]
    return Threads(script=outcomes)


@pytest.mark.parametrize(
    ("endings", "retries", "state", "attempts", "code"),
    [
        (["worker", "worker"], "{}", "finished", 3, 0),
        (["worker", "worker", "worker"], "{}", "failed", 3, 1),
        (["worker"], "{worker: 0}", "failed", 1, 1),
        (["error"], "{}", "failed", 1, 1),
        (["error"], "{error: 1}", "finished", 2, 0),
        (["user"], "{worker: 9, error: 9}", "failed", 1, 2),
        (["preempted"] * 7, "{worker: 0}", "finished", 8, 0),
        (["unschedulable"] * 7, "{worker: 0}", "finished", 8, 0),
        (["interrupted"], "{}", "finished", 2, 0),
        (["killed"], "{worker: 0}", "failed", 1, 1),
        (["corrupt"], "{error: 9}", "failed", 1, 1),
    ],
)
def test_each_class_of_failure_has_its_own_retries(
    store: Store, endings: list[str], retries: str, state: str, attempts: int, code: int
) -> None:
    run = make(store, f"a: {{uses: toy.count, retries: {retries}}}")
    assert go(run, scripted(*endings), backoff=0.0).state == state
    assert len(events(run, "stage.started")) == attempts
    assert len(events(run, "stage.retry")) == attempts - 1
    assert exit_code(run) == code


def test_a_failure_has_a_message_and_a_remedy(store: Store) -> None:
    run = make(store, "a: {uses: toy.count, trouble: user}")
    go(run)
    failed = events(run, "stage.failed")[0]
    assert failed["error"] == "toy: the number is odd"
    assert failed["remedy"] == "give an even one"
    assert failed["class"] == "user"


def test_a_failure_stops_only_what_needs_it(store: Store) -> None:
    stages = TWO_AND_SUM.replace("value: 1", "value: 1, trouble: raise")
    run = make(store, stages + 'more: {uses: toy.add, numbers: ["${sum}"]}')
    assert go(run).state == "failed"
    assert states(run) == {"a": "failed", "b": "finished", "sum": "skipped", "more": "skipped"}
    assert exit_code(run) == 1


def test_a_repaired_stage_resumes(store: Store) -> None:
    run = make(store, TWO_AND_SUM.replace("value: 1", "value: 1, trouble: raise, troubled: 1"))
    launcher = Threads()
    assert go(run, launcher).state == "failed"
    assert go(run, launcher).state == "finished"
    assert sorted(launcher.jobs) == [("a", 1), ("a", 2), ("b", 1), ("sum", 1)]
    assert states(run) == {"a": "finished", "b": "cached", "sum": "finished"}
    assert exit_code(run) == 0


def test_two_kinds_of_failures_are_not_the_users_fault(store: Store) -> None:
    run = make(store, "a: {uses: toy.count, trouble: user}\nb: {uses: toy.count, trouble: raise}")
    go(run)
    assert exit_code(run) in (1, 2)
    both = make(store, "a: {uses: toy.count, value: 1, trouble: user}\n"
                       "b: {uses: toy.count, value: 2, trouble: raise}")  # fmt: skip
    go(both)
    assert exit_code(both) == 1


def test_an_attempt_that_finds_no_place_for_its_log_fails_the_run_in_words(store: Store) -> None:
    run = make(store, "a: {uses: toy.count}")
    (run.folder / "stages").write_text("in the way")
    with pytest.raises(Failure, match="cannot write: Not a directory") as caught:
        go(run)
    assert "check the disk" in caught.value.remedy


def test_output_that_cannot_be_published_fails_the_stage(store: Store) -> None:
    run, launcher = make(store, "a: {uses: toy.count}"), Threads()
    launcher.after = lambda job: out(store, job).joinpath("link").symlink_to("number.txt")
    assert go(run, launcher).state == "failed"
    assert "links" in events(run, "stage.failed")[0]["error"]
    assert not list(store.artifacts())


def out(store: Store, job: Job) -> Path:
    return store.work(job.uses, job.fingerprint) / "out"


# --- stopping ----------------------------------------------------------------------------------


def signals(*moments: Callable[[], bool]) -> threading.Thread:
    """Send this process Ctrl-C at each of these moments."""

    def body() -> None:
        for moment in moments:
            until(moment)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread


def test_interrupted_it_stops_at_a_safe_point_and_resumes_to_the_same_bytes(
    store: Store, hold: Path, tmp_path: Path
) -> None:
    undisturbed = make(Store(tmp_path / "other"), TWO_AND_SUM)
    go(undisturbed)
    run = make(store, held(hold))
    thread = signals(lambda: holds(run, "a") and states(run)["b"] == "finished")
    assert go(run).state == "interrupted"
    thread.join()
    assert exit_code(run) == 130
    assert states(run) == {"a": "interrupted", "b": "finished", "sum": "pending"}
    assert events(run, "stage.interrupted")[0]["at"] == "step 2/4"
    hold.unlink()
    assert go(run).state == "finished"
    assert not run.cancel_file.exists()
    assert digests(run) == digests(undisturbed)
    assert events(run, "stage.started", "a")[-1]["attempt"] == 2


def test_a_stage_that_finishes_while_stopping_is_published(store: Store, hold: Path) -> None:
    run = make(store, held(hold, ", deaf: true"))
    thread = signals(lambda: holds(run, "a"))
    meanwhile = threading.Thread(
        target=lambda: (until(run.cancel_file.exists), hold.unlink()), daemon=True
    )
    meanwhile.start()
    assert go(run).state == "interrupted"
    thread.join()
    meanwhile.join()
    assert states(run)["a"] == "finished"
    assert states(run)["sum"] == "pending"


def test_interrupted_twice_it_stops_now(store: Store, hold: Path) -> None:
    run = make(store, held(hold, ", deaf: true"))
    thread = signals(lambda: holds(run, "a"), run.cancel_file.exists)
    assert go(run, grace=DEADLINE * 9).state == "interrupted"
    thread.join()
    assert states(run)["a"] == "interrupted"


def test_a_deaf_stage_is_killed_after_the_grace(store: Store, hold: Path) -> None:
    run = make(store, held(hold, ", deaf: true"))
    thread = signals(lambda: holds(run, "a"))
    assert go(run, grace=0.05).state == "interrupted"
    thread.join()


def test_another_shell_cancels(store: Store, hold: Path) -> None:
    meanwhile = Meanwhile(make(store, held(hold)))
    until(lambda: holds(meanwhile.run, "a"))
    meanwhile.run.cancel_file.write_text("cancel\n")
    assert meanwhile.end() == "cancelled"
    assert exit_code(meanwhile.run) == 130
    hold.unlink()
    assert go(meanwhile.run).state == "finished"


def test_a_run_that_was_cancelled_before_it_began_makes_nothing(store: Store) -> None:
    run, launcher = make(store, TWO_AND_SUM), Threads()
    run.cancel_file.write_text("cancel\n")
    assert go(run, launcher).state == "cancelled"
    assert launcher.starts == 0


def test_only_a_cancel_from_before_the_run_was_over_is_forgotten(store: Store) -> None:
    run, launcher = make(store, TWO_AND_SUM), Threads()
    run.cancel_file.write_text("cancel\n")
    assert go(run).state == "cancelled"
    run.append("run.resubmitted")
    assert run.status().state == "pending"
    run.cancel_file.write_text("cancel\n")
    assert go(run, launcher).state == "cancelled"
    assert launcher.starts == 0
    assert go(run).state == "finished"


def test_a_worker_that_dies_while_stopping_is_no_failure(store: Store, hold: Path) -> None:
    run = make(store, f"a: {{uses: toy.count, hold: {hold}, retries: {{worker: 0}}}}")
    launcher = scripted("worker")
    launcher.before = lambda job: run.cancel_file.write_text("cancel\n") and None
    assert go(run, launcher).state == "cancelled"
    assert states(run) == {"a": "interrupted"}


def test_a_pause_before_a_retry_can_be_interrupted(store: Store) -> None:
    run = make(store, "a: {uses: toy.count}")
    thread = signals(lambda: bool(events(run, "stage.retry")))
    assert go(run, scripted("worker"), backoff=50.0).state == "interrupted"
    thread.join()
    assert states(run) == {"a": "interrupted"}


def test_a_stage_that_waits_for_resources_can_be_interrupted(store: Store, hold: Path) -> None:
    stages = f"a: {{uses: toy.count, hold: {hold}}}\nb: {{uses: toy.count, value: 1, hold: {hold}}}"
    run = make(store, stages)
    thread = signals(lambda: holds(run, "a") or holds(run, "b"))
    assert go(run, Threads(cpus=1)).state == "interrupted"
    thread.join()
    assert sorted(states(run).values()) == ["interrupted", "pending"]


def test_a_stage_without_room_can_be_interrupted(store: Store) -> None:
    run = make(store, "a: {uses: toy.count, retries: {worker: 0}}")
    launcher = scripted("unschedulable")
    launcher.before = lambda job: run.cancel_file.write_text("cancel\n") and None
    assert go(run, launcher).state == "cancelled"
    assert states(run) == {"a": "interrupted"}
    assert events(run, "stage.retry") == []


def test_a_start_can_be_interrupted(store: Store) -> None:
    class Slow(Threads):
        def start(self) -> list[Resources]:
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the start went on")

    run, launcher = make(store, TWO_AND_SUM), Slow()
    assert go(run, launcher).state == "interrupted"
    assert launcher.closed
    assert launcher.jobs == []


# --- several runs ------------------------------------------------------------------------------


def test_two_runs_at_once_make_everything_once(store: Store, hold: Path) -> None:
    one = Meanwhile(make(store, held(hold)))
    until(lambda: holds(one.run, "a"))
    two = Meanwhile(make(store, held(hold)))
    until(lambda: events(two.run, "stage.waiting", "a"))
    assert events(two.run, "stage.waiting", "a")[0]["reason"] == f"{one.run.id} is producing it"
    hold.unlink()
    assert (one.end(), two.end()) == ("finished", "finished")
    made = events(one.run, "stage.finished") + events(two.run, "stage.finished")
    assert sorted(event["stage"] for event in made) == ["a", "b", "sum"]
    assert digests(one.run) == digests(two.run)


def test_waiting_for_another_run_can_be_interrupted(store: Store, hold: Path) -> None:
    one = Meanwhile(make(store, held(hold)))
    until(lambda: holds(one.run, "a"))
    two = make(store, held(hold))
    thread = signals(lambda: bool(events(two, "stage.waiting")))
    assert go(two).state == "interrupted"
    thread.join()
    assert states(two)["a"] == "pending"
    hold.unlink()
    assert one.end() == "finished"


def test_a_plan_that_another_run_overtook_is_not_carried_out_twice(store: Store) -> None:
    late, early, launcher = make(store, TWO_AND_SUM), make(store, TWO_AND_SUM), Threads()
    assert go(early).state == "finished"
    assert go(late, launcher).state == "finished"
    assert launcher.jobs == []


def test_a_run_has_one_driver(store: Store, hold: Path) -> None:
    meanwhile = Meanwhile(make(store, held(hold)))
    until(lambda: holds(meanwhile.run, "a"))
    with pytest.raises(UserError, match="being executed already"):
        go(Run(store, meanwhile.run.id))
    hold.unlink()
    assert meanwhile.end() == "finished"


@pytest.fixture
def quick_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = Lease.__init__.__kwdefaults__
    assert defaults
    monkeypatch.setitem(defaults, "heartbeat", 0.02)


def steal(store: Store, run: Run, stage: str) -> Lease:
    """Take over as a run on another machine would that heard nothing for a minute."""
    planned = next(s for s in run.plan().stages if s.name == stage)
    folder = store.lease(planned.uses, planned.fingerprint, "x").folder
    thief = Lease(folder, "a-thief", expiry=0.0)
    assert thief.acquire()
    return thief


@pytest.mark.usefixtures("quick_leases")
def test_a_lost_lease_ends_the_stage_which_then_waits(store: Store, hold: Path) -> None:
    meanwhile = Meanwhile(make(store, f"a: {{uses: toy.count, hold: {hold}, deaf: true}}"))
    until(lambda: holds(meanwhile.run, "a"))
    thief = steal(store, meanwhile.run, "a")
    until(lambda: events(meanwhile.run, "stage.waiting"))
    assert events(meanwhile.run, "stage.retry")[0]["error"] == "another run took it over"
    assert events(meanwhile.run, "stage.waiting")[0]["reason"] == "a-thief is producing it"
    hold.unlink()
    thief.release()
    assert meanwhile.end() == "finished"
    assert len(events(meanwhile.run, "stage.finished")) == 1


def test_a_lease_lost_before_the_commit_commits_nothing(store: Store) -> None:
    run, launcher = make(store, "a: {uses: toy.count}"), Threads()
    thieves = []
    published = []

    def after(job: Job) -> None:
        if job.attempt == 1:
            thieves.append(steal(store, run, "a"))
        published.append(len(list(store.artifacts())))

    def release() -> None:
        until(lambda: events(run, "stage.waiting"))
        thieves[0].release()

    launcher.after = after
    thread = threading.Thread(target=release, daemon=True)
    thread.start()
    assert go(run, launcher).state == "finished"
    thread.join()
    assert published == [0, 0]
    assert len(events(run, "stage.finished")) == 1


# --- damage ------------------------------------------------------------------------------------


def flip(artifact_path: Path) -> None:
    """Flip a bit as a disk does: size and time stay the same."""
    file = artifact_path / "number.txt"
    times, raw = file.stat(), bytearray(file.read_bytes())
    raw[0] ^= 1
    file.write_bytes(bytes(raw))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def made(store: Store, run: Run, stage: str) -> Path:
    planned = next(s for s in run.plan().stages if s.name == stage)
    artifact = store.latest_readable(planned.uses, planned.fingerprint)
    assert artifact
    return artifact.path


def test_a_damaged_artifact_is_quarantined_and_made_again(store: Store) -> None:
    first = make(store, TWO_AND_SUM)
    go(first)
    path = made(store, first, "a")
    (path / "number.txt").unlink()
    run = make(store, TWO_AND_SUM)
    assert run.plan().stages[0].reason == "artifact is corrupt: number.txt: missing"
    assert path.exists()
    launcher = Threads()
    assert go(run, launcher).state == "finished"
    assert launcher.jobs == [("a", 1)]
    assert list((store.root / "quarantine" / "toy.count").glob(f"{path.name}-1/*"))
    assert digests(run) == digests(first)


def test_a_damaged_input_is_made_again_and_then_used(store: Store) -> None:
    first = make(store, TWO_AND_SUM)
    go(first)
    before = digests(first)
    flip(made(store, first, "a"))
    shutil.rmtree(made(store, first, "sum"))
    run, launcher = make(store, TWO_AND_SUM), Threads()
    assert go(run, launcher).state == "finished"
    assert launcher.jobs == [("sum", 1), ("a", 1), ("sum", 2)]
    assert "corrupt input" in events(run, "stage.waiting", "sum")[0]["reason"]
    assert digests(run) == before
    assert states(run) == {"a": "finished", "b": "cached", "sum": "finished"}


def test_a_damaged_input_that_no_node_can_make_again_is_an_error(store: Store) -> None:
    large = TWO_AND_SUM.replace("value: 1", "value: 1, workers: {cpus: 4}")
    first = make(store, large)
    go(first)
    flip(made(store, first, "a"))
    shutil.rmtree(made(store, first, "sum"))
    with pytest.raises(SpecError, match=r"a\.workers: requests 1 times 4 CPUs"):
        go(make(store, large), Threads(cpus=2))


def test_what_vanishes_after_the_plan_is_made_again(store: Store) -> None:
    first = make(store, TWO_AND_SUM)
    go(first)
    run, launcher = make(store, TWO_AND_SUM), Threads()
    shutil.rmtree(made(store, first, "b"))
    assert go(run, launcher).state == "finished"
    assert launcher.jobs == [("b", 1)]


def test_what_is_damaged_each_time_fails(store: Store) -> None:
    first = make(store, TWO_AND_SUM)
    go(first)
    shutil.rmtree(made(store, first, "sum"))
    run, launcher = make(store, TWO_AND_SUM), Threads()
    launcher.before = lambda job: flip(made(store, run, "a")) if job.stage == "sum" else None
    assert go(run, launcher).state == "failed"
    assert "is missing or corrupt" in events(run, "stage.failed", "sum")[0]["error"]
    assert exit_code(run) == 1


def test_a_damaged_artifact_from_elsewhere_cannot_be_made_again(store: Store) -> None:
    first = make(store, TWO_AND_SUM)
    go(first)
    path = made(store, first, "a")
    run = make(store, f"sum: {{uses: toy.add, numbers: ['artifact:{path.name}']}}")
    flip(path)
    assert go(run).state == "failed"
    assert "headwater verify" in events(run, "stage.failed")[0]["remedy"]


# --- around the run ----------------------------------------------------------------------------


class Watcher:
    def __init__(self, run: Run, broken: bool = False) -> None:
        self.run = run
        self.broken = broken
        self.seen: list[str] = []

    def start(self) -> None:
        self.seen.append(self.run.events()[-1]["event"])
        if self.broken:
            raise ConnectionError("no server")

    def stop(self) -> None:
        self.seen.append(self.run.events()[-1]["event"])


def test_observers_see_the_whole_journal(store: Store) -> None:
    run = make(store, "a: {uses: toy.count}")
    watcher = Watcher(run)
    go(run, observers=[watcher])
    assert watcher.seen == ["run.started", "run.finished"]


def test_an_observer_cannot_fail_a_run(store: Store) -> None:
    run = make(store, "a: {uses: toy.count}")
    watcher = Watcher(run, broken=True)
    assert go(run, observers=[watcher]).state == "finished"
    assert "no server" in events(run, "note")[0]["message"]


def test_promotion_comes_last(store: Store) -> None:
    run = make(store, TWO_AND_SUM)
    seen = []
    go(run, on_finished=lambda run: seen.append(states(run)))
    assert seen == [{"a": "finished", "b": "finished", "sum": "finished"}]


def test_nothing_is_promoted_out_of_a_failed_run(store: Store) -> None:
    run = make(store, "a: {uses: toy.count, trouble: raise}")
    go(run, on_finished=lambda run: pytest.fail("promoted"))


def test_a_gate_refuses(store: Store) -> None:
    def refuse(run: Run) -> None:
        raise GateRefused("10 is not over 11", remedy="count further")

    run = make(store, "a: {uses: toy.count}")
    assert go(run, on_finished=refuse).state == "refused"
    assert exit_code(run) == 3
    assert events(run, "gate.refused")[0]["remedy"] == "count further"


@pytest.mark.parametrize(
    ("error", "code"), [(Failure("no room"), 1), (UserError("no such alias"), 2), (KeyError(1), 1)]
)
def test_a_promotion_that_fails_fails_the_run(store: Store, error: Exception, code: int) -> None:
    def fail(run: Run) -> None:
        raise error

    run = make(store, "a: {uses: toy.count}")
    with pytest.raises(type(error)):
        go(run, on_finished=fail)
    assert run.status().state == "failed"
    assert exit_code(run) == code


@pytest.mark.parametrize("wish", ["Ctrl-C", "cancel"])
def test_a_promotion_is_broken_off_and_done_again(store: Store, wish: str) -> None:
    begun = threading.Event()

    def promote(run: Run) -> None:
        begun.set()
        threading.Event().wait(DEADLINE)
        pytest.fail("the promotion went on")

    run = make(store, "a: {uses: toy.count}")
    if wish == "cancel":
        thread = threading.Thread(
            target=lambda: (begun.wait(), run.cancel_file.write_text("cancel\n"))
        )
        thread.start()
    else:
        thread = signals(begun.is_set)
    status = go(run, on_finished=promote)
    thread.join()
    assert status.state == ("cancelled" if wish == "cancel" else "interrupted")
    assert exit_code(run) == 130
    assert states(run) == {"a": "finished"}
    assert go(run, on_finished=lambda run: None).state == "finished"


def test_a_driver_that_lost_its_run_ends_its_stages(store: Store, hold: Path) -> None:
    run, launcher = make(store, held(hold)), Threads()
    meanwhile = Meanwhile(run, launcher)
    until(lambda: holds(run, "a"))
    thief = Lease(store.lease("run", run.id, "x").folder, "thief", expiry=0.0)
    assert thief.acquire()
    hold.unlink()
    with pytest.raises(LeaseLost):
        meanwhile.end()
    assert launcher.closed
    thief.release()


def test_stages_that_do_not_end_when_killed_do_not_hold_the_driver(
    store: Store, hold: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.execution.runner._KILL_TIMEOUT", 0.05)

    class Deaf(Threads):
        def run(self, job: Job, stop: Callable[[], bool]) -> Outcome:
            return super().run(job, lambda: False)

    run = make(store, held(hold, ", deaf: true"))
    thread = signals(lambda: holds(run, "a"), run.cancel_file.exists)
    with pytest.raises(HeadwaterError, match="did not end"):
        go(run, Deaf())
    thread.join()
