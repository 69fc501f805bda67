"""Execution of a run: every stage whose inputs exist is run, independent ones in parallel.

The driver is stateless: it reads everything from the plan, the journal and the store, so that the
same command continues a run that stopped. It never imports the stages' heavy libraries. Attempts
run wherever the launcher puts them; it starts only when there is something to make.

    status = execute(run, launcher)  # SIGINT or SIGTERM once: stop at the next safe point;
    sys.exit(exit_code(run))         # twice: stop at once
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Protocol

from pipeline.errors import Failure, GateRefused, HeadwaterError, UserError
from pipeline.execution.cancellation import CancellationToken
from pipeline.execution.plan import ModelResolver, Plan, PlannedStage, SourceHash, make_plan
from pipeline.execution.resources import ResourcePool, Resources, check_placement
from pipeline.execution.run import Run
from pipeline.execution.stage_executor import Launcher, StageExecutor
from pipeline.spec.pipeline_spec import ModelRef, Spec
from pipeline.status import COMPLETED_STATES, RunState, RunStatus, StageState
from pipeline.storage.artifact import Artifact

GRACE = 25.0  # seconds from the request to stop until stages are killed; 30 are promised
BACKOFF = 1.0  # seconds before the first retry; doubled for each further one
TICK = 0.1  # seconds between two checks of signals and the cancel file
_KILL_TIMEOUT = 5.0  # seconds for threads to end after their stages were killed

_EXIT_CODES = {"finished": 0, "refused": 3, "interrupted": 130, "cancelled": 130}


class Observer(Protocol):
    """A reader of a run's journal while it runs. Its errors are notes in the journal."""

    def start(self) -> None:
        """Begin to follow the journal."""

    def stop(self) -> None:
        """Read the rest of the journal, which is complete."""


def execute(
    run: Run,
    launcher: Launcher,
    *,
    observers: Sequence[Observer] = (),
    on_finished: Callable[[Run], None] | None = None,
    grace: float = GRACE,
    backoff: float = BACKOFF,
) -> RunStatus:
    """Execute a run, or continue one that stopped.

    Args:
        launcher: where attempts run; it is closed at the end.
        observers: started after `run.started` and stopped after the run's last event.
        on_finished: called when all stages have finished (promotion). `GateRefused` makes the run
            `refused`, any other error makes it `failed`. A request to stop raises
            `KeyboardInterrupt` at any point in it, so that it must be safe to kill.
        grace: seconds for stages to stop on request.
        backoff: seconds before the first retry.

    Raises:
        UserError: another driver executes this run, or a stage can be placed on no node.
        Failure: the engine cannot continue (a full disk, a lost lease); `resume` can.
    """
    resumed = any(event["event"] == "run.started" for event in run.events())
    run.open()
    token = CancellationToken(run.cancel_file, grace)
    try:
        with _observed(run, observers), token.handle_signals():
            if resumed:
                run.write_plan(plan_again(run, run.spec(), launcher.source_hash))
            with closing(launcher):
                scheduler = Scheduler(run, run.plan(), launcher, token, backoff)
                _run_to_end(run, scheduler, on_finished)
    finally:
        run.close()
    return run.status()


def plan_again(
    run: Run,
    spec: Spec,
    source_hash: SourceHash,
    from_: str | None = None,
    resolve_model: ModelResolver | None = None,
) -> Plan:
    """Plan a run with its first options against the current store.

    Args:
        run: the run whose options are kept: `only`, `strict_code`, and what it was to run again.
        spec: its pipeline, or the one of the run that continues it.
        source_hash: see `make_plan`.
        from_: also run this stage and all that depend on it again.
        resolve_model: resolver of the models that its plan does not name.

    Raises:
        NotFound, SpecError, Failure: see `make_plan`.
    """
    before = run.plan()
    made = {event["stage"] for event in run.events() if event["event"] == "stage.finished"}
    left = {stage.name for stage in before.stages if stage.rerun} - made
    edges = [sources for stage in before.stages for sources in stage.inputs.values()]
    pinned = {s["artifact"]: s for sources in edges for s in sources if "artifact" in s}

    def resolve(model: ModelRef) -> Artifact:
        """Return the artifact from the first plan, because the alias may have moved since."""
        if str(model) not in pinned and resolve_model:
            return resolve_model(model)
        source = pinned[str(model)]
        return run.store.by_fingerprint(f"{source['uses']}/{source['fingerprint']}")

    return make_plan(
        spec,
        run.store,
        only=before.only,
        from_=from_,
        rerun=[name for name in spec.nodes if name in left],
        strict_code=before.strict_code,
        resolve_model=resolve,
        source_hash=source_hash,
    )


def exit_code(run: Run) -> int:
    """Return the exit code of a process that executed this run."""
    status = run.status()
    classes: set[str | None] = set()
    for event in run.events():
        if event["event"] == "run.started":
            classes.clear()
        if event["event"] == "stage.failed" or event.get("state") == "failed":
            classes.add(event.get("class"))
    if status.state == "failed" and classes - {None} == {"user"}:
        return UserError.exit_code
    return _EXIT_CODES.get(status.state, 1)


def _run_to_end(run: Run, scheduler: Scheduler, on_finished: Callable[[Run], None] | None) -> None:
    """Run the stages and the last step, and write the end of the run to the journal."""
    try:
        state = scheduler.run_stages()
        if state == "finished" and on_finished:
            done = False
            with scheduler.token.interruptible():
                on_finished(run)
                done = True
            if not done and scheduler.token.requested and scheduler.token.reason:
                state = scheduler.token.reason
    except GateRefused as refused:
        run.append("gate.refused", error=str(refused), remedy=refused.remedy)
        state = "refused"
    except BaseException as error:
        scheduler.abort()
        known = error if isinstance(error, HeadwaterError) else Failure(repr(error))
        kind = "user" if isinstance(error, UserError) else "error"
        facts = {"class": kind, "error": str(known), "remedy": known.remedy}
        with suppress(HeadwaterError):
            run.append("run.finished", state="failed", **facts)
        raise
    if state == "interrupted":
        run.append("run.interrupted")
    else:
        run.append("run.finished", state=state)


class Scheduler:
    """Scheduler of the stages of a plan: each runs in a thread as soon as its inputs exist."""

    def __init__(
        self, run: Run, plan: Plan, launcher: Launcher, token: CancellationToken, backoff: float
    ) -> None:
        self.run = run
        self.stages = {stage.name: stage for stage in plan.stages}
        self.nodes = run.spec().nodes
        self.launcher = launcher
        self.token = token
        self.backoff = backoff
        self.states: dict[str, StageState] = {}
        self._pool: ResourcePool | None = None
        self._capacity: Sequence[Resources] = ()
        self._to_replace: dict[str, Artifact | None] = {}
        self._reproduced: set[str] = set()
        self._threads: dict[str, threading.Thread] = {}
        self._ended: queue.Queue[tuple[str, StageState | BaseException]] = queue.Queue()

    def run_stages(self) -> RunState:
        """Run the stages whose inputs exist and return the state of the run.

        Raises:
            SpecError: stages need more than the cluster has; nothing was started.
            Failure: the journal or the store cannot be written.
        """
        for name, stage in self.stages.items():
            self.states[name] = "skipped" if stage.action == "skip" else "pending"
            if stage.action != "skip":
                self._to_replace[name] = self.run.store.find(stage.uses, stage.fingerprint)
                if self._to_replace[name] and not stage.rerun:
                    self.states[name] = "cached"
                    self.run.append("stage.cached", stage=name, fingerprint=stage.fingerprint)
        while True:
            self._skip_dependents_of_failed()
            pending = [s for s in self.stages.values() if self.states[s.name] == "pending"]
            ready = [s for s in pending if all(self.states[n] in COMPLETED_STATES for n in s.needs)]
            ready = [] if self.token.requested else ready
            for stage in ready:
                self._begin(stage)
            if self._threads:
                self._reap_finished()
            elif not ready:
                break
        states = set(self.states.values())
        if "failed" in states:
            return "failed"
        stopped = self.token.reason if states & {"pending", "interrupted"} else None
        return stopped or "finished"

    def abort(self) -> None:
        """Kill all stages at once; their work is kept for a resume."""
        self.token.cancel_now()
        for thread in self._threads.values():
            thread.join(_KILL_TIMEOUT)

    def _skip_dependents_of_failed(self) -> None:
        for stage in self.stages.values():
            lost = [need for need in stage.needs if self.states[need] in ("failed", "skipped")]
            if self.states[stage.name] == "pending" and lost:
                self.states[stage.name] = "skipped"
                self.run.append("stage.skipped", stage=stage.name, reason=f"{lost[0]} failed")

    def _begin(self, stage: PlannedStage) -> None:
        """Start a stage's thread, if its inputs still exist."""
        inputs = self._inputs(stage)
        pool = self._pool or self._start_launcher()
        if inputs is None or pool is None:
            return
        check_placement([self.nodes[stage.name]], self._capacity)  # it may have been cached before
        node, old, token = self.nodes[stage.name], self._to_replace.get(stage.name), self.token
        executor = StageExecutor(
            self.run, stage, node, inputs, self.launcher, pool, token, self.backoff, old
        )

        def execute_stage() -> None:
            try:
                end: StageState | BaseException = executor.execute()
            except BaseException as error:  # raised again by `_reap_finished`
                end = error
            self._ended.put((stage.name, end))

        thread = threading.Thread(target=execute_stage, name=stage.name, daemon=True)
        self.states[stage.name] = "running"
        self._threads[stage.name] = thread
        thread.start()

    def _reap_finished(self) -> None:
        """Wait a tick for a stage to end, and store its state."""
        if self.token.expired(_KILL_TIMEOUT):
            raise Failure("stages did not end although they were killed")
        with suppress(queue.Empty):
            name, end = self._ended.get(timeout=TICK)
            del self._threads[name]
            if isinstance(end, BaseException):
                raise end
            self.states[name] = end

    def _start_launcher(self) -> ResourcePool | None:
        """Start the launcher; return None if a stop is requested before it is ready.

        Raises:
            SpecError: pending stages need more than the nodes of the cluster have.
        """
        with self.token.interruptible():
            self._capacity = self.launcher.start()
            pending = [self.nodes[name] for name, s in self.states.items() if s == "pending"]
            check_placement(pending, self._capacity)
            self._pool = ResourcePool(sum(self._capacity, Resources(0)))
        return self._pool

    def _inputs(self, stage: PlannedStage) -> dict[str, tuple[Artifact, ...]] | None:
        """Return the artifacts on each edge; None if one is gone and must be produced again."""
        inputs: dict[str, tuple[Artifact, ...]] = dict.fromkeys(stage.inputs, ())
        for edge, sources in stage.inputs.items():
            for source in sources:
                artifact = self.run.store.find(source["uses"], source["fingerprint"])
                if artifact is None:
                    self._reproduce_input(stage, source["fingerprint"])
                    return None
                inputs[edge] += (artifact,)
        return inputs

    def _reproduce_input(self, stage: PlannedStage, fingerprint: str) -> None:
        """Produce a corrupt input again, once; otherwise fail the stage that needs it."""
        maker = next((s for s in self.stages.values() if s.fingerprint == fingerprint), None)
        if maker is None or maker.name in self._reproduced:
            self.states[stage.name] = "failed"
            error = f"its input {fingerprint} is missing or corrupt"
            remedy = "`headwater verify --all` shows why; produce it again with its own pipeline"
            facts = {"class": "corrupt", "error": error, "remedy": remedy}
            self.run.append("stage.failed", stage=stage.name, **facts)
            return
        self._reproduced.add(maker.name)
        self.states[maker.name] = "pending"
        self.run.append("note", message=f"{maker.name} is corrupt; producing it again")


@contextmanager
def _observed(run: Run, observers: Sequence[Observer]) -> Iterator[None]:
    """Start and stop the observers around the block; their errors are notes in the journal."""
    _call_each(run, [observer.start for observer in observers])
    try:
        yield
    finally:
        _call_each(run, [observer.stop for observer in observers])


def _call_each(run: Run, calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        try:
            call()
        except Exception as error:
            with suppress(HeadwaterError):
                run.append("note", message=f"an observer failed: {error!r}")
