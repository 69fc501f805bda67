"""The one training loop.

    setup ─ resume ─┬─ step: rate, seed, objective.step, guard ─┬─ final evaluation ─ export
                    └────── stop if asked, save, evaluate ──────┘

A step is a function of the weights and its number: the generators are seeded from (seed, step,
rank) and the data is a function of the step. So a run that was killed and resumed makes the same
numbers as one that was not; on the same layout, bit for bit.

Guard: an update whose gradient is not finite is skipped, on all ranks alike, and so is one whose
loss or norm stands out (`stages.training.spike_guard`). After `skip_limit` bad steps in a row the loop
goes back to the newest anchor and past the data that broke it (Chowdhery et al. 2022, section 5.1),
at most `rollbacks` times; then it gives up. A step skipped for its norm alone is none of them.
Anchors are the checkpoints that fell due by the step while all was well: those that an interrupt
left are none, so that a run which was stopped goes back as far as one which was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from pipeline.context import read_series
from pipeline.errors import Failure, Interrupted
from stages.training.checkpoint import Checkpoints, Saved
from stages.training.data_order import mix
from stages.training.engine import Engine
from stages.training.lr_schedule import factor
from stages.training.throughput import Meter

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.training.objective import Metrics, Objective
    from stages.training.ranks.rank import Rank
    from stages.training.step_result import EngineStep, StepResult
    from stages.training.training_params import TrainSection


@dataclass
class Position:
    """How far training is: saved with every checkpoint."""

    step: int = 0
    """Steps that are done; a skipped step counts."""
    offset: int = 0
    """Steps' worth of data that rollbacks leapt over."""
    tokens: float = 0.0
    skipped: int = 0
    """Steps of which an update was skipped."""
    bad: int = 0
    """Steps in a row, up to this one, that went wrong."""
    why: str = ""
    """What was wrong with the last that did."""
    rollbacks: int = 0


def fit(
    rank: Rank,
    objective: Objective,
    settings: TrainSection,
    *,
    seed: int,
    out: Path | None = None,
    name: str = "train",
) -> dict[str, float]:
    """Train, from the newest checkpoint if there is one, and export.

    Args:
        rank: this process; rank 0 holds the context that everything is reported to.
        objective: what to train, and on what.
        settings: how.
        seed: of initial weights, data order and dropout.
        out: where the model folder goes; nothing is exported without it.
        name: distinguishes several trainings of one stage: their checkpoints, and their series
            (`<name>_loss`…) where it is not "train".

    Returns:
        The final figures, on every rank: the objective's `setup_metrics`, the last loss, the evaluation,
        tokens, skipped steps.

    Raises:
        Interrupted: the context was cancelled; a checkpoint of the last step is there.
        Failure: steps kept going wrong, or a checkpoint could not be written.
    """
    torch.manual_seed(mix(seed))
    trainables = objective.setup(rank, settings, seed)
    engines = {key: Engine(key, t, settings, rank) for key, t in trainables.items()}
    folder = rank.broadcast(rank.ctx.scratch / "checkpoints" / name if rank.ctx else None)
    try:
        return Fit(rank, objective, settings, seed, name, engines, folder).run(out)
    finally:
        for engine in engines.values():
            engine.close()


class Fit:
    """One training run on one rank."""

    def __init__(
        self,
        rank: Rank,
        objective: Objective,
        settings: TrainSection,
        seed: int,
        name: str,
        engines: dict[str, Engine],
        folder: Path | None,
    ) -> None:
        self.rank = rank
        self.objective = objective
        self.settings = settings
        self.seed = seed
        self.prefix = "" if name == "train" else f"{name}_"
        self.engines = engines
        keeping = (
            settings.checkpoint_keep_latest,
            self._say,
            self._committed,
            settings.checkpoint_keep_interval,
        )
        self.saves = Checkpoints(folder, rank, *keeping) if folder else None
        self.position = Position()
        self.meter = Meter(rank, getattr(torch, settings.dtype), objective.flops_per_token)
        self._last: dict[str, float] = {}
        self._begun = time.monotonic()
        self._first = 0
        self._reported = self._evaluated = -1
        self._known: dict[int, dict[str, float]] = {}

    def run(self, out: Path | None) -> dict[str, float]:
        """Resume, train, evaluate, export."""
        self._resume()
        self._first = self.position.step
        while self.position.step < self.settings.steps:
            if self._due(self.settings.eval_interval):
                self._evaluate()
            self._step()
            if self.position.bad > self.settings.skip_limit:
                self._roll_back()
            else:
                self._between()
        self.rank.progress.step_seconds = 0.0  # what follows takes as long as it takes
        self._save(wait=False)
        final = {**self._last, **self._evaluate()}
        self._save(wait=True)
        if out is not None:
            self._export(out)
        counts = {"tokens": self.position.tokens, "skipped_steps": float(self.position.skipped)}
        return {**self.objective.setup_metrics, **final, **counts}

    def _step(self) -> None:
        """One step of the objective, reported."""
        position, step = self.position, self.position.step
        torch.manual_seed(mix(self.seed, step + position.offset, self.rank.index))
        rate = factor(self.settings, step)
        rates = {key: engine.set_lr_scale(rate) for key, engine in self.engines.items()}
        self.meter.start()
        result = self.objective.step(self.engines, step + position.offset)
        speed = self.meter.stop(result.tokens)
        position.step += 1
        position.tokens += result.tokens
        self._guard(result)
        self.rank.heartbeat()
        self.rank.progress.step_seconds = self.meter.median
        lr = {"lr": next(iter(rates.values()))}
        self._report(
            {**result.metrics, **lr, **self._updates(result.updates), **speed, **self._spent()}
        )

    def _guard(self, result: StepResult) -> None:
        """Count what went wrong. Norms and losses are alike on all ranks, so is this."""
        position = self.position
        made = [update for key in self.engines for update in result.updates if update.engine == key]
        skipped = [update.skip_reason for update in made if not update.applied]
        finite = math.isfinite(result.metrics.get("loss", 0.0))
        if not finite or any(update.is_anomaly for update in made):
            position.bad += 1
        elif not skipped:
            position.bad = 0
        position.skipped += bool(skipped)
        if skipped:
            what = "step" if len(skipped) == len(made) else f"{len(skipped)} of {len(made)} updates"
            position.why = skipped[0]
            self._say(f"step {position.step}: {position.why}; {what} skipped")
        elif not finite:
            position.why = "the loss is not finite, though the gradient is"
            self._say(f"step {position.step}: {position.why}")

    def _spent(self) -> dict[str, float]:
        """What the steps so far were made of: runs are compared by it."""
        tokens, flops = self.position.tokens, self.objective.flops_per_token
        spent = {"tokens": tokens, "flops": tokens * flops}
        return {name: value for name, value in spent.items() if value}

    def _updates(self, updates: Sequence[EngineStep]) -> dict[str, float]:
        """The gradient's norm of each engine, the largest if it made several updates; how many
        updates stood out, where any did; and float16's loss scale."""
        rest = {}
        if spikes := sum(update.is_spike for update in updates):
            rest["spike"] = float(spikes)
        if self.settings.dtype == "float16":
            rest["loss_scale"] = next(iter(self.engines.values())).loss_scale
        norms = {
            key: max((update.grad_norm for update in updates if update.engine == key), default=0.0)
            for key in self.engines
        }
        if len(norms) == 1:
            return {"grad_norm": norms.popitem()[1], **rest}
        return {**{f"grad_norm_{key}": norm for key, norm in norms.items()}, **rest}

    def _due(self, every: int) -> bool:
        """Whether this step is one of every `every`-th; never at 0."""
        return bool(every and self.position.step and self.position.step % every == 0)

    def _between(self) -> None:
        """What may follow a step: a stop first, for somebody waits for it."""
        if self.rank.stop_requested() and self.position.step < self.settings.steps:
            self._stop()
        # While steps go wrong, the state is not one to come back to.
        if self._due(self.settings.checkpoint_interval) and not self.position.bad:
            self._save(wait=False)

    def _stop(self) -> NoReturn:
        """Save and go.

        Raises:
            Interrupted: always.
        """
        self._save(wait=True)
        raise Interrupted(
            f"stopped at step {self.position.step} of {self.settings.steps}",
            where=self.rank.stage,
            remedy="`headwater resume` goes on from here",
        )

    def _evaluate(self) -> dict[str, float]:
        """Figures on held-out data; those of a step that the series has already are not made
        again."""
        step = self.position.step
        if step in self._known:
            return self._known[step]
        try:
            figures = dict(self.objective.evaluate(self.engines, step))
        except Interrupted:
            self._stop()
        if figures and self.rank.ctx and step > self._evaluated:
            self.rank.ctx.metrics(step, self._named(figures))
            shown = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
            self._say(f"step {step}: {shown}")
        return figures

    def _save(self, *, wait: bool) -> None:
        if self.saves is None:
            return
        position = self.position
        if self.saves.saved_step != position.step:
            self.saves.save(
                position.step,
                self.engines,
                {
                    "loop": asdict(position),
                    "engines": {key: engine.state_dict() for key, engine in self.engines.items()},
                    "objective": self.objective.state_dict(),
                    "last": self._last,
                },
                anchor=self._due(self.settings.checkpoint_interval) and not position.bad,
            )
        if wait:
            self.saves.wait()

    def _committed(self, step: int) -> None:
        if self.rank.ctx:
            self.rank.ctx.resume_point(step, self.settings.steps)

    def _resume(self) -> None:
        saved = self.saves.newest() if self.saves else None
        if saved:
            self._take_up(saved)
            self._say(f"going on from step {self.position.step} of {self.settings.steps}")
        self._rewind()

    def _rewind(self) -> None:
        """Have every step once in the series, and learn what it holds. Where several trainings
        share it, what is there stays: the steps that are made again make the same numbers."""
        ctx, step, known = self.rank.ctx, self.position.step, {}
        if ctx:
            if not self.prefix:
                ctx.truncate_series(step)
            points = self._points(ctx)
            tested = [(at, point) for at, point in points if _tested(point)]
            self._reported = max((at for at, _ in points), default=-1)
            self._evaluated = max((at for at, _ in tested), default=-1)
            known = {at: _tested(point) for at, point in tested if at == step}
        self._known = self.rank.broadcast(known)

    def _points(self, ctx: Context) -> list[tuple[int, dict[str, float]]]:
        """What the series holds of this training: steps, and figures by their own names."""
        cut = len(self.prefix)
        return [
            (point["step"], mine)
            for point in read_series(ctx.observed / "metrics.jsonl")
            if (mine := {key[cut:]: v for key, v in point.items() if key.startswith(self.prefix)})
        ]

    def _take_up(self, saved: Saved) -> None:
        assert self.saves is not None
        extra: dict[str, Any] = self.saves.load(saved, self.engines)
        self.position = Position(**extra["loop"])
        self._last = extra["last"]
        for key, state in extra.get("engines", {}).items():
            self.engines[key].load_state_dict(state)
        self.objective.load_state_dict(extra["objective"])

    def _roll_back(self) -> None:
        """Go back to the newest anchor and on to data beyond the bad.

        Raises:
            Failure: there is none, or it was done often enough.
        """
        now = self.position
        saved = None
        self.rank.progress.step_seconds = 0.0  # reading may take longer than a step
        if now.rollbacks < self.settings.max_rollbacks and self.saves:
            saved = self.saves.newest(anchor=True)
        if saved is None:
            raise Failure(
                f"{now.bad} steps in a row went wrong, up to step {now.step}: {now.why}",
                where=self.rank.stage,
                remedy="lower train.lr, lengthen train.warmup_steps, or look at the data; "
                "train.spike_sigma says what stands out",
            )
        self._take_up(saved)
        self.position.offset = now.step + now.offset - self.position.step
        self.position.rollbacks = now.rollbacks + 1
        self.position.skipped = now.skipped
        self._say(f"back to step {self.position.step}, leaping over the data up to {now.step}")
        self._rewind()

    def _export(self, out: Path) -> None:
        with ExitStack() as gathered:
            for engine in self.engines.values():
                gathered.enter_context(engine.fp32_master_weights())
            if self.rank.is_main:
                self.objective.export(self.engines, out)
        self.rank.barrier()

    def _report(self, figures: Metrics) -> None:
        self._last = {key: figures[key] for key in ("loss",) if key in figures}
        ctx = self.rank.ctx
        if ctx is None:
            return
        step, steps = self.position.step, self.settings.steps
        if step > self._reported:
            ctx.metrics(step, self._named(figures))
        each = (time.monotonic() - self._begun) / (step - self._first or 1)
        live = {key: figures[key] for key in ("loss", "tokens_per_second") if key in figures}
        ctx.progress(step, steps, "step", eta=each * (steps - step), **live)

    def _named(self, figures: Mapping[str, float]) -> dict[str, float]:
        return {f"{self.prefix}{key}": float(value) for key, value in figures.items()}

    def _say(self, message: str) -> None:
        if self.rank.ctx:
            self.rank.ctx.log(f"{self.prefix}{message}" if self.prefix else message)


def _tested(figures: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an evaluation among those of a point of the series."""
    return {key: float(value) for key, value in figures.items() if key.startswith("eval_")}
