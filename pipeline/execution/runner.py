"""Carries out a run: every stage whose inputs exist is made, independent ones side by side.

The driver is stateless: all it knows is the plan, the journal and the store, so that typing the
same command again goes on where it stopped. It never imports the stages' heavy libraries;
where attempts run is the launcher's affair, which starts only when there is something to make.

    status = execute(run, store, launcher)  # SIGINT or SIGTERM once: stop at the next safe point;
    sys.exit(exit_code(run))                # twice: now
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import Failure, GateRefused, HeadwaterError, UserError
from pipeline.execution.cancellation import CANCELLED, INTERRUPTED, CancellationToken
from pipeline.execution.plan import make_plan
from pipeline.execution.stage_executor import Launcher, ResourcePool, Resources, StageExecutor
from pipeline.status import StageState
from pipeline.storage.artifact import Artifact
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from pipeline.execution.plan import Plan, PlannedStage
    from pipeline.execution.run import Run
    from pipeline.spec.pipeline_spec import ModelRef
    from pipeline.status import RunStatus

GRACE = 25.0  # seconds from the wish to stop until stages are killed; 30 are promised
BACKOFF = 1.0  # seconds before the first retry; doubled for each further one
TICK = 0.1  # seconds between two looks at signals and the cancel file
_KILL_TIMEOUT = 5.0  # seconds that threads get to notice that their stages were killed

_EXIT = {"finished": 0, "failed": 1, "refused": 3, INTERRUPTED: 130, CANCELLED: 130}


class Observer(Protocol):
    """Somebody who follows a run's journal while it runs; cannot fail it."""

    def start(self) -> None:
        """The journal begins to grow."""

    def stop(self) -> None:
        """The journal is complete."""


def execute(
    run: Run,
    store: Store,
    launcher: Launcher,
    *,
    observers: Sequence[Observer] = (),
    on_finished: Callable[[Run], None] | None = None,
    grace: float = GRACE,
    backoff: float = BACKOFF,
) -> RunStatus:
    """Carry out a run, or go on with one that stopped.

    Args:
        launcher: where attempts run; it is closed at the end.
        observers: started after `run.started` and stopped after the run's last event.
        on_finished: called once all stages are made (promotion). `GateRefused` makes the run
            `refused`, any other error makes it `failed`. The wish to stop raises
            `KeyboardInterrupt` in it, wherever it is: what it does must bear a kill.
        grace: seconds that stages get to stop when asked.
        backoff: seconds before the first retry.

    Raises:
        UserError: another driver is at work on this run, or a stage asks for more than there is.
        Failure: the engine itself cannot go on (a full disk, a lost lease); `resume` does.
    """
    again = any(event["event"] == "run.started" for event in run.events())
    run.open()
    stop = CancellationToken(run.cancel_file, grace)
    try:
        with _watched(run, observers), stop.handle_signals():
            if again:
                run.write_plan(_plan_again(run))
            with closing(launcher):
                scheduler = Scheduler(run, run.plan(), launcher, stop, backoff)
                _finish(run, scheduler, on_finished)
    finally:
        run.close()
    return run.status()


def _plan_again(run: Run) -> Plan:
    """The plan of a resumed run: what its options meant at first, against the store of now."""
    before = run.plan()
    made = {event["stage"] for event in run.events() if event["event"] == "stage.finished"}
    rerun = [stage.name for stage in before.stages if stage.forced and stage.name not in made]
    taken = [stage.name for stage in before.stages if stage.verdict != "skip"]
    pinned = {
        source["artifact"]: source
        for stage in before.stages
        for sources in stage.inputs.values()
        for source in sources
        if "artifact" in source
    }

    def resolve(model: ModelRef) -> Artifact:
        """The alias may have moved since; the run goes on with what it began with."""
        source = pinned[str(model)]
        return run.store.by_fingerprint(f"{source['uses']}/{source['fingerprint']}")

    only = taken[-1] if len(taken) < len(before.stages) else None
    return make_plan(run.spec(), run.store, only=only, rerun=rerun, resolve_model=resolve)


def exit_code(run: Run) -> int:
    """What a process that carried out this run ends with."""
    status = run.status()
    classes: set[str | None] = set()
    for event in run.events():
        if event["event"] == "run.started":
            classes.clear()
        if event["event"] == "stage.failed" or event.get("state") == "failed":
            classes.add(event.get("class"))
    if status.state == "failed" and classes - {None} == {"user"}:
        return UserError.exit_code
    return _EXIT.get(status.state, 1)


def _finish(run: Run, scheduler: Scheduler, on_finished: Callable[[Run], None] | None) -> None:
    """Drive to the end and journal it, whatever it is."""
    try:
        state = scheduler.run_stages()
        if state == "finished" and on_finished:
            state = _conclude(run, scheduler.stop, on_finished)
    except GateRefused as refused:
        run.append("gate.refused", error=str(refused), remedy=refused.remedy)
        state = "refused"
    except BaseException as error:
        scheduler.abort()
        told = error if isinstance(error, HeadwaterError) else Failure(repr(error))
        kind = "user" if isinstance(error, UserError) else "error"
        facts = {"class": kind, "error": str(told), "remedy": told.remedy}
        with suppress(HeadwaterError):
            run.append("run.finished", state="failed", **facts)
        raise
    if state == INTERRUPTED:
        run.append("run.interrupted")
    else:
        run.append("run.finished", state=state)


def _conclude(run: Run, stop: CancellationToken, on_finished: Callable[[Run], None]) -> str:
    """The last step. A wish to stop breaks it off at once, and a resume does it again."""
    done = False
    with stop.interruptible():
        on_finished(run)
        done = True
    return "finished" if done or not stop.requested else stop.reason


class Scheduler:
    """One drive through a plan."""

    def __init__(
        self, run: Run, plan: Plan, launcher: Launcher, stop: CancellationToken, backoff: float
    ) -> None:
        self.run = run
        self.store = run.store
        self.stages = {stage.name: stage for stage in plan.stages}
        self.nodes = run.spec().nodes
        self.launcher = launcher
        self.stop = stop
        self.backoff = backoff
        self.states: dict[str, StageState] = {}
        self._pool: ResourcePool | None = None
        self._stale: dict[str, Artifact | None] = {}
        self._remade: set[str] = set()
        self._at_work: dict[str, threading.Thread] = {}
        self._ended: queue.Queue[tuple[str, StageState | BaseException]] = queue.Queue()

    def run_stages(self) -> str:
        """Make what can be made. Returns the run's last state.

        Raises:
            UserError: a stage asks for more than the cluster has; nothing was started.
            Failure: the journal or the store cannot be written.
        """
        for stage in self.stages.values():
            self.states[stage.name] = self._first_state(stage)
        while True:
            self._skip_dependents_of_failed()
            ready = self._ready()
            for stage in ready:
                self._begin(stage)
            if self._at_work:
                self._reap_finished()
            elif not ready:
                return self._last_state()

    def abort(self) -> None:
        """End all stages at once; their work stays for a resume."""
        self.stop.cancel_now()
        for thread in self._at_work.values():
            thread.join(_KILL_TIMEOUT)

    def _first_state(self, stage: PlannedStage) -> StageState:
        if stage.verdict == "skip":
            return "skipped"
        found = self.store.find(stage.uses, stage.fingerprint)
        if found and not stage.forced:
            self.run.append("stage.cached", stage=stage.name, fingerprint=stage.fingerprint)
            return "cached"
        self._stale[stage.name] = found
        return "pending"

    def _skip_dependents_of_failed(self) -> None:
        """What needs a stage that failed will never run."""
        for stage in self.stages.values():
            lost = [need for need in stage.needs if self.states[need] in ("failed", "skipped")]
            if self.states[stage.name] == "pending" and lost:
                self.states[stage.name] = "skipped"
                self.run.append("stage.skipped", stage=stage.name, reason=f"{lost[0]} failed")

    def _ready(self) -> list[PlannedStage]:
        """Stages to begin with now: all inputs are published and nobody wants to stop."""
        if self.stop.requested:
            return []
        return [
            stage
            for name, stage in self.stages.items()
            if self.states[name] == "pending"
            and all(self.states[need] in ("cached", "finished") for need in stage.needs)
        ]

    def _begin(self, stage: PlannedStage) -> None:
        """Send a stage on its way, if its inputs are still what they were."""
        inputs = self._inputs(stage)
        pool = self._pool or self._start()
        if inputs is None or pool is None:
            return
        executor = StageExecutor(
            self.run,
            stage,
            self.nodes[stage.name],
            inputs,
            self.launcher,
            pool,
            self.stop,
            self.backoff,
            self._stale.get(stage.name),
        )
        thread = threading.Thread(
            target=self._carry, args=(executor,), name=stage.name, daemon=True
        )
        self.states[stage.name] = "running"
        self._at_work[stage.name] = thread
        thread.start()

    def _carry(self, executor: StageExecutor) -> None:
        try:
            end: StageState | BaseException = executor.execute()
        except BaseException as error:  # the driver's loop raises it again
            end = error
        self._ended.put((executor.planned.name, end))

    def _reap_finished(self) -> None:
        """Wait a moment for a stage to end, and take note of how it did."""
        if self.stop.expired(_KILL_TIMEOUT):
            raise Failure("stages did not end although they were killed")
        try:
            name, end = self._ended.get(timeout=TICK)
        except queue.Empty:
            return
        del self._at_work[name]
        if isinstance(end, BaseException):
            raise end
        self.states[name] = end

    def _start(self) -> ResourcePool | None:
        """Start the launcher, once; None if somebody wants to stop before it is ready.

        Raises:
            UserError: a stage that is to be made asks for more than there is.
        """
        with self.stop.interruptible():
            self._pool = ResourcePool(self.launcher.start())
        if self._pool:
            self._refuse_impossible(self._pool.total)
        return self._pool

    def _refuse_impossible(self, total: Resources) -> None:
        for name, state in self.states.items():
            need = Resources.required_by(self.nodes[name].params.workers)
            if state == "pending" and not total.fits(need):
                raise UserError(
                    f"it asks for {need}, the cluster has {total}",
                    where=f"{self.nodes[name].where} {name}.workers",
                    remedy=f"lower it ({name}.workers.num=1) or name a larger cluster",
                )

    def _inputs(self, stage: PlannedStage) -> dict[str, tuple[Artifact, ...]] | None:
        """The artifacts on each edge; None if one is gone and its stage was called again."""
        found: dict[str, tuple[Artifact, ...]] = {}
        for edge, sources in stage.inputs.items():
            artifacts = [self.store.find(s["uses"], s["fingerprint"]) for s in sources]
            for source, artifact in zip(sources, artifacts, strict=True):
                if artifact is None:
                    self._remake(stage, source["fingerprint"])
                    return None
            found[edge] = tuple(artifact for artifact in artifacts if artifact)
        return found

    def _remake(self, stage: PlannedStage, fingerprint: str) -> None:
        """An input turned out to be damaged: make it again, once, or fail for want of it."""
        maker = next((s for s in self.stages.values() if s.fingerprint == fingerprint), None)
        if maker is None or maker.name in self._remade:
            self.states[stage.name] = "failed"
            self.run.append(
                "stage.failed",
                stage=stage.name,
                error=f"its input {fingerprint} is gone or damaged",
                remedy="`headwater verify --all` says why; make it again with its own pipeline",
                **{"class": "corrupt"},
            )
            return
        self._remade.add(maker.name)
        self.states[maker.name] = "pending"
        self.run.append("note", message=f"{maker.name} is damaged and is made again")

    def _last_state(self) -> str:
        states = set(self.states.values())
        if "failed" in states:
            return "failed"
        return self.stop.reason if states & {"pending", "interrupted"} else "finished"


@contextmanager
def _watched(run: Run, observers: Sequence[Observer]) -> Iterator[None]:
    """Observers see the whole journal; what goes wrong with them is a note in it."""
    for observer in observers:
        _quietly(run, observer.start)
    try:
        yield
    finally:
        for observer in observers:
            _quietly(run, observer.stop)


def _quietly(run: Run, call: Callable[[], None]) -> None:
    try:
        call()
    except Exception as error:
        with suppress(HeadwaterError):
            run.append("note", message=f"an observer failed: {error!r}")
