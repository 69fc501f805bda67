"""The training loop.

    setup - resume -+- step: lr, seed, objective.step, anomaly check -+- evaluation - export
                    +--- stop if requested, checkpoint, evaluate -----+

The path of a training batch, forward and back (packed windows of text, GPT-2, AdamW):

     1 trainer._step                      one step; returns its metrics to the series
     2 lr_schedule                          its learning rate
     3 supervised.step                      this rank's micro-batches: forward, backward, one update
     4 data_order.micro_batches               the samples of this rank
     5 data/token_store                       one sample: a window of tokens
     6 objectives/causal_lm                   collate; loss
     7 engine.__call__, backward, step        DeepSpeed around the module and the optimizer
     8 models/language_model                    forward pass of any decoder
     9 models/gpt2/modeling_gpt2                  its blocks
    10 models/fused_ops                           head and cross-entropy
    11 optim/hooked_optimizer                   clipping, and the update by AdamW
    12 spike_guard                              the decision whether to update

Another objective, model family or optimizer replaces 6, 9 or 11. Other files on the path hold no
step of the computation: types (`objective`, `step_result`), the arithmetic of batch sizes
(`training_params`), sums over ranks (`ranks.rank`) and timing (`throughput`).

Each file calls those that are indented below it and returns to it: `objective.step` returns a
`StepResult` with the metrics and the outcome of every update. The one call upwards is
`pre_update_hook`: the gradient norm is available only inside DeepSpeed's optimizer step, so the
optimizer calls the engine, which clips the gradient or cancels the update.

A step is a function of the weights and its number: the generators are seeded from (seed, step,
rank), and the data is a function of the step. So a run that was killed and resumed computes the
same numbers as one that was not; on the same layout, bit for bit.

Anomalies: an update is skipped, on all ranks, if its gradient is not finite or if loss or norm is a
spike (`stages.training.spike_guard`). After `skip_limit` bad steps in a row the trainer rolls back
to the newest scheduled checkpoint and continues beyond the data that broke it (Chowdhery et al.
2022, section 5.1), at most `max_rollbacks` times; then it gives up. A step skipped only because of
its norm is not bad. Scheduled checkpoints are those of `checkpoint_interval` saved while no step
was bad. Checkpoints of interruptions are not among them, so that a run that was interrupted rolls
back as far as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from pipeline.context import read_series
from pipeline.errors import Failure, Interrupted
from stages.training.best_weights import BestMetric, BestWeights
from stages.training.checkpoint import Checkpoint, CheckpointManager
from stages.training.data_order import derive_seed
from stages.training.engine import Engine
from stages.training.lr_schedule import lr_scale
from stages.training.throughput import ThroughputMeter

if TYPE_CHECKING:
    from stages.training.objective import Metrics, Objective
    from stages.training.ranks.rank import Rank
    from stages.training.step_result import EngineStep, StepResult
    from stages.training.training_params import TrainSection


@dataclass
class TrainerState:
    """The progress of a training; part of every checkpoint."""

    step: int = 0
    """Steps done, skipped ones included."""
    data_offset: int = 0
    """Steps of data that rollbacks passed over."""
    tokens: float = 0.0
    skipped_steps: int = 0
    """Steps with a skipped update."""
    bad_steps: int = 0
    """Bad steps in a row, up to this one."""
    last_problem: str = ""
    rollbacks: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the fields by their names in a checkpoint."""
        return {saved: getattr(self, name) for name, saved in _SAVED_AS.items()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> TrainerState:
        """Return the state that `state_dict` returned."""
        return cls(**{name: state[saved] for name, saved in _SAVED_AS.items()})


_SAVED_AS = {
    "step": "step",
    "data_offset": "offset",
    "tokens": "tokens",
    "skipped_steps": "skipped",
    "bad_steps": "bad",
    "last_problem": "why",
    "rollbacks": "rollbacks",
}


def fit(
    rank: Rank,
    objective: Objective,
    settings: TrainSection,
    *,
    seed: int,
    out: Path | None = None,
    name: str = "train",
    keep: BestMetric | None = None,
) -> dict[str, float]:
    """Train, from the newest checkpoint if there is one, and export.

    Args:
        rank: this process; rank 0 has the context that everything is reported to.
        objective: what to train, and on what data.
        settings: hyperparameters.
        seed: seed of initial weights, data order and dropout.
        out: folder of the model; without it nothing is exported.
        name: distinguishes several trainings of one stage: their checkpoints, and their series
            (`<name>_loss`...) unless it is "train".
        keep: the metric whose best evaluation decides which weights are exported. Default: the last
            weights are.

    Returns:
        The final metrics, on every rank: the objective's `setup_metrics`, the last loss, the
        evaluation, tokens, skipped steps; with `keep` the evaluation of the exported weights and
        their `kept_step`.

    Raises:
        Interrupted: the context was cancelled; a checkpoint of the last step is saved.
        Failure: too many bad steps, or a checkpoint could not be written.
    """
    torch.manual_seed(derive_seed(seed))
    trainables = objective.setup(rank, settings, seed)
    engines = {key: Engine(key, t, settings, rank) for key, t in trainables.items()}
    folder = rank.broadcast(rank.ctx.scratch / "checkpoints" / name if rank.ctx else None)
    try:
        return Trainer(rank, objective, settings, seed, name, engines, folder, keep).run(out)
    finally:
        for engine in engines.values():
            engine.close()


class Trainer:
    """One training on one rank."""

    def __init__(
        self,
        rank: Rank,
        objective: Objective,
        settings: TrainSection,
        seed: int,
        name: str,
        engines: dict[str, Engine],
        folder: Path | None,
        keep: BestMetric | None = None,
    ) -> None:
        self.rank = rank
        self.objective = objective
        self.settings = settings
        self.seed = seed
        self.prefix = "" if name == "train" else f"{name}_"
        self.engines = engines
        self.checkpoints: CheckpointManager | None = None
        if folder:
            self.checkpoints = CheckpointManager(
                folder,
                rank,
                settings.checkpoint_keep_latest,
                settings.checkpoint_keep_interval,
                log=self._log,
                on_commit=self._report_commit,
            )
        self.best: BestWeights | None = None
        if folder and keep:
            best_folder = folder.with_name(f"{folder.name}-best")
            self.best = BestWeights(best_folder, rank, keep, self._log)
        self.state = TrainerState()
        self.meter = ThroughputMeter(
            rank, getattr(torch, settings.dtype), objective.flops_per_token
        )
        self._last_metrics: dict[str, float] = {}
        self._started_at = time.monotonic()
        self._first_step = 0
        self._reported_step = self._evaluated_step = -1
        self._known_evaluations: dict[int, dict[str, float]] = {}

    def run(self, out: Path | None) -> dict[str, float]:
        """Resume, train, evaluate, export, and return the final metrics."""
        checkpoint = self.checkpoints.latest() if self.checkpoints else None
        if checkpoint:
            self._restore(checkpoint)
            self._log(f"continuing from step {self.state.step} of {self.settings.steps}")
        self._truncate_series()
        self._first_step = self.state.step
        while self.state.step < self.settings.steps:
            if self._is_due(self.settings.eval_interval):
                self._evaluate()
            self._step()
            if self.state.bad_steps > self.settings.skip_limit:
                self._roll_back()
            else:
                self._after_step()
        self.rank.progress.step_seconds = 0.0  # evaluation and export may take longer than steps
        self._save(wait=False)
        final = {**self._last_metrics, **self._evaluate()}
        self._save(wait=True)
        if self.best:
            final |= self.best.restore(self.engines)
        if out is not None:
            self._export(out)
        counts = {"tokens": self.state.tokens, "skipped_steps": float(self.state.skipped_steps)}
        return {**self.objective.setup_metrics, **final, **counts}

    def _step(self) -> None:
        """Run one step of the objective, and report its metrics."""
        state, data_step = self.state, self.state.step + self.state.data_offset
        torch.manual_seed(derive_seed(self.seed, data_step, self.rank.index))
        scale = lr_scale(self.settings, state.step)
        lrs = [engine.set_lr_scale(scale) for engine in self.engines.values()]
        self.meter.start()
        result = self.objective.step(self.engines, data_step)
        throughput = self.meter.stop(result.tokens)
        state.step += 1
        state.tokens += result.tokens
        self._count_bad_steps(result)
        self.rank.heartbeat()
        self.rank.progress.step_seconds = self.meter.median
        totals = {
            "tokens": state.tokens,
            "flops": state.tokens * self.objective.flops_per_token,
        }
        self._report(
            {
                **result.metrics,
                "lr": lrs[0],
                **self._update_metrics(result.updates),
                **throughput,
                **{name: total for name, total in totals.items() if total},
            }
        )

    def _count_bad_steps(self, result: StepResult) -> None:
        """Count skipped updates and bad steps. Norms and losses are identical on all ranks, so the
        counts are too."""
        state = self.state
        updates = [u for key in self.engines for u in result.updates if u.engine == key]
        skipped = [update.skip_reason for update in updates if not update.applied]
        finite = math.isfinite(result.metrics.get("loss", 0.0))
        if not finite or any(update.is_anomaly for update in updates):
            state.bad_steps += 1
        elif not skipped:
            state.bad_steps = 0
        state.skipped_steps += bool(skipped)
        if skipped:
            count = f"{len(skipped)} of {len(updates)} updates"
            what = "step" if len(skipped) == len(updates) else count
            state.last_problem = skipped[0]
            self._log(f"step {state.step}: {state.last_problem}; {what} skipped")
        elif not finite:
            state.last_problem = "the loss is not finite, though the gradient is"
            self._log(f"step {state.step}: {state.last_problem}")

    def _update_metrics(self, updates: Sequence[EngineStep]) -> dict[str, float]:
        """Return the gradient norm per engine, the largest if it made several updates; the number
        of spikes if there were any; and float16's loss scale."""
        norms = {
            key: max((update.grad_norm for update in updates if update.engine == key), default=0.0)
            for key in self.engines
        }
        metrics = {f"grad_norm_{key}": norm for key, norm in norms.items()}
        if len(norms) == 1:
            metrics = {"grad_norm": norms.popitem()[1]}
        if spikes := sum(update.is_spike for update in updates):
            metrics["spike"] = float(spikes)
        if self.settings.dtype == "float16":
            metrics["loss_scale"] = next(iter(self.engines.values())).loss_scale
        return metrics

    def _is_due(self, interval: int) -> bool:
        """Return whether the number of steps is a multiple of the interval; never for 0."""
        return bool(interval and self.state.step and self.state.step % interval == 0)

    def _after_step(self) -> None:
        """Stop if it is requested, else save if a checkpoint is due."""
        if self.rank.stop_requested() and self.state.step < self.settings.steps:
            self._stop()
        # After bad steps the state is not one to roll back to.
        if self._is_due(self.settings.checkpoint_interval) and not self.state.bad_steps:
            self._save(wait=False)

    def _stop(self) -> NoReturn:
        """Save, and stop.

        Raises:
            Interrupted: always.
        """
        self._save(wait=True)
        raise Interrupted(
            f"stopped at step {self.state.step} of {self.settings.steps}",
            where=self.rank.stage,
            remedy="`headwater resume` continues from here",
        )

    def _evaluate(self) -> dict[str, float]:
        """Return metrics on held-out data; those that the series already has are not computed
        again."""
        step = self.state.step
        metrics = self._known_evaluations.get(step) or self._new_evaluation()
        if self.best:
            self.best.offer(step, self.engines, metrics)
        return metrics

    def _new_evaluation(self) -> dict[str, float]:
        step = self.state.step
        try:
            metrics = dict(self.objective.evaluate(self.engines, step))
        except Interrupted:
            self._stop()
        if metrics and self.rank.ctx and step > self._evaluated_step:
            self.rank.ctx.metrics(step, self._prefixed(metrics))
            values = ", ".join(f"{key} {value:.4g}" for key, value in metrics.items())
            self._log(f"step {step}: {values}")
        return metrics

    def _save(self, *, wait: bool) -> None:
        if self.checkpoints is None:
            return
        if self.best:
            self.best.wait()
        state = self.state
        if self.checkpoints.saved_step != state.step:
            self.checkpoints.save(
                state.step,
                self.engines,
                {
                    "loop": state.state_dict(),
                    "engines": {key: engine.state_dict() for key, engine in self.engines.items()},
                    "objective": self.objective.state_dict(),
                    "last": self._last_metrics,
                },
                for_rollback=self._is_due(self.settings.checkpoint_interval)
                and not state.bad_steps,
            )
        if wait:
            self.checkpoints.wait()

    def _report_commit(self, step: int) -> None:
        if self.rank.ctx:
            self.rank.ctx.resume_point(step, self.settings.steps)

    def _truncate_series(self) -> None:
        """Remove repeated steps from the series, and read the evaluations that it has.

        Series that several trainings share are not truncated: repeated steps compute the same
        numbers again.
        """
        ctx, step, known = self.rank.ctx, self.state.step, {}
        if ctx:
            if not self.prefix:
                ctx.truncate_series(step)
            length = len(self.prefix)
            points = [
                (point["step"], own)
                for point in read_series(ctx.observed / "metrics.jsonl")
                if (own := {k[length:]: v for k, v in point.items() if k.startswith(self.prefix)})
            ]
            evaluations = [
                (at, {k: math.nan if v is None else v for k, v in own.items() if k[:5] == "eval_"})
                for at, own in points
            ]
            self._reported_step = max((at for at, _ in points), default=-1)
            self._evaluated_step = max((at for at, found in evaluations if found), default=-1)
            known = {at: found for at, found in evaluations if found and at == step}
        self._known_evaluations = self.rank.broadcast(known)

    def _restore(self, checkpoint: Checkpoint) -> None:
        assert self.checkpoints
        extra: dict[str, Any] = self.checkpoints.load(checkpoint, self.engines)
        self.state = TrainerState.from_state_dict(extra["loop"])
        self._last_metrics = extra["last"]
        for key, state in extra.get("engines", {}).items():
            self.engines[key].load_state_dict(state)
        self.objective.load_state_dict(extra["objective"])

    def _roll_back(self) -> None:
        """Restore the newest scheduled checkpoint, and continue beyond the data that broke it.

        Raises:
            Failure: no such checkpoint exists, or no rollback is left.
        """
        now = self.state
        checkpoint = None
        self.rank.progress.step_seconds = 0.0  # reading may take longer than a step
        if now.rollbacks < self.settings.max_rollbacks and self.checkpoints:
            checkpoint = self.checkpoints.latest(for_rollback=True)
        if checkpoint is None:
            raise Failure(
                f"{now.bad_steps} bad step{'s in a row' * (now.bad_steps > 1)}, up to step "
                f"{now.step}: {now.last_problem}",
                where=self.rank.stage,
                remedy="lower train.lr, increase train.warmup_steps, or check the data; "
                "train.spike_sigma sets what counts as a spike",
            )
        self._restore(checkpoint)
        self.state.data_offset = now.step + now.data_offset - self.state.step
        self.state.rollbacks = now.rollbacks + 1
        self.state.skipped_steps = now.skipped_steps
        self._log(f"back to step {self.state.step}, skipping the data up to step {now.step}")
        self._truncate_series()

    def _export(self, out: Path) -> None:
        with ExitStack() as stack:
            for engine in self.engines.values():
                stack.enter_context(engine.fp32_master_weights())
            if self.rank.is_main:
                self.objective.export(self.engines, out)
        self.rank.barrier()

    def _report(self, metrics: Metrics) -> None:
        self._last_metrics = {"loss": metrics["loss"]} if "loss" in metrics else {}
        ctx = self.rank.ctx
        if ctx is None:
            return
        step, steps = self.state.step, self.settings.steps
        if step > self._reported_step:
            ctx.metrics(step, self._prefixed(metrics))
        per_step = (time.monotonic() - self._started_at) / (step - self._first_step or 1)
        live = {key: metrics[key] for key in ("loss", "tokens_per_second") if key in metrics}
        ctx.progress(step, steps, "step", eta=per_step * (steps - step), **live)

    def _prefixed(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return {f"{self.prefix}{key}": float(value) for key, value in metrics.items()}

    def _log(self, message: str) -> None:
        if self.rank.ctx:
            self.rank.ctx.log(f"{self.prefix}{message}")
