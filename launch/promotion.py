"""Promotion of a run's model: which artifact, its metrics, and a smoke test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.failures import promotion_failed, promotion_rule
from launch.ui.options import mlflow_uri
from pipeline.errors import HeadwaterError, UserError, did_you_mean
from pipeline.kind import is_promotable
from pipeline.promotion_gates import Gate
from pipeline.spec.pipeline_spec import DEFAULT_ALIAS, Promotion
from pipeline.stage_registry import find_stage
from pipeline.status import COMPLETED_STATES

if TYPE_CHECKING:
    from pipeline.execution.run import Run
    from pipeline.status import RunStatus
    from pipeline.storage.artifact import Artifact

SMOKE_TEST_SECONDS = 600


def smoke_test(folder: Path) -> None:
    """Load the model and use it once, in a separate process.

    Raises:
        RuntimeError: it does not load, or its outputs are invalid; the message is the last line of
            the process.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "stages.models.smoke_test", str(folder)],
            capture_output=True,
            text=True,
            timeout=SMOKE_TEST_SECONDS,
            check=False,
            start_new_session=True,  # so that Ctrl-C does not fail the model
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no answer within {SMOKE_TEST_SECONDS} s") from None
    if done.returncode:
        output = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise RuntimeError(output.splitlines()[-1])


def promote_after_run(run: Run) -> None:
    """Promote the model that the pipeline file names, unless its stage was skipped.

    Raises:
        GateRefused: a gate refused the model.
        Failure: MLflow did not answer.
    """
    skipped = {stage.name for stage in run.status().stages if stage.state == "skipped"}
    if (rule := run.spec().promote) and rule.stage not in skipped:
        promote_run(run, rule)


def resolve_promotion(
    run: Run, stage: str, model: str | None, alias: str | None, require: tuple[str, ...]
) -> Promotion:
    """Return a promotion whose missing parts are those of the pipeline file.

    Its gates count for the stage and the model that they were written for; others have none.

    Args:
        stage: empty for the stage of the file, else the only one that makes a model.

    Raises:
        UserError: neither names the model, or several stages make models.
    """
    rule = promotion_rule(run)
    if model is None and rule is None:
        message = f"the pipeline file of run {run.id} promotes no model"
        raise UserError(message, remedy="name it: `headwater promote RUN --model NAME`")
    stage, model = stage or model_stage(run), model or (rule.model if rule else "")
    if rule is None or (rule.stage, rule.model) != (stage, model):
        return Promotion(model, stage, alias or DEFAULT_ALIAS, require)
    return Promotion(model, stage, alias or rule.alias, require or rule.require)


def promote_run(run: Run, wanted: Promotion, *, dry_run: bool = False) -> dict[str, Any]:
    """Promote the model of a stage of a run and record that in the run's journal.

    It finishes a run whose promotion alone had failed.

    Returns:
        The record of the promotion.
    """
    from launch.tracking.model_registry import Registry

    status, model, alias = run.status(), wanted.model, wanted.alias
    for text in wanted.require:
        check_gate_was_measured(Gate.parse(text), status)
    record = Registry(run.store, mlflow_uri()).promote(
        stage_artifact(run, wanted.stage),
        model,
        alias,
        wanted.require,
        {entry.name: entry.metrics for entry in status.stages},
        dry_run=dry_run,
        smoke_test=smoke_test,
        run=run.id,
    )
    promoted = {"model": model, "version": record["to"]}
    recorded = any(
        e.items() >= promoted.items() and alias in e["aliases"] for e in status.registered
    )
    if not dry_run and not recorded:
        facts = {"alias": alias, "stage": wanted.stage, "gates": record["gates"]}
        run.append("promoted", **promoted, **facts)
        rule = promotion_rule(run)
        if promotion_failed(status) and rule and (rule.model, rule.alias) == (model, alias):
            run.append("run.finished", state="finished")
    return record


def check_gate_was_measured(gate: Gate, status: RunStatus) -> None:
    """Check that the stage of a gate ran, and reported the metric if it declares it.

    Raises:
        UserError: a stage that was skipped, or a metric that it declares and did not report.
    """
    for stage in status.stages:
        name = gate.metric.removeprefix(f"{stage.name}.")
        if name == gate.metric or name in stage.metrics:
            continue
        other = "promote with another gate: `headwater promote RUN --require GATE`"
        if stage.state == "skipped":
            message = f"the gate {gate.text!r} needs {stage.name}, which is skipped: {stage.reason}"
            raise UserError(message, remedy=f"run {stage.name}, or {other}")
        if meaning := _meaning(stage.uses, name):
            message = f"the gate {gate.text!r} needs {name} ({meaning}), which this run lacks"
            raise UserError(f"{message}: {stage.name} had no data for it", remedy=other)


def _meaning(uses: str, metric: str) -> str:
    """Return the meaning of a metric that a stage declares; empty for another one."""
    try:
        return (find_stage(uses).metrics or {}).get(metric, "")
    except HeadwaterError:  # the stage is not installed any more
        return ""


def stage_artifact(run: Run, stage: str) -> Artifact:
    """Return the artifact of a stage of a run.

    Raises:
        UserError: no such stage, or it has no artifact.
    """
    stages = {entry.name: entry for entry in run.status().stages}
    if stage not in stages:
        raise UserError(f"run {run.id} has no stage {stage!r}", remedy=did_you_mean(stage, stages))
    found = stages[stage]
    resume = f"headwater resume {run.id}"
    if found.state not in COMPLETED_STATES:
        raise UserError(
            f"{stage} of run {run.id} is {found.state} and has no artifact", remedy=resume
        )
    artifact = run.store.find(found.uses, found.fingerprint)
    if artifact is None:
        raise UserError(
            f"the artifact of {stage} of run {run.id} is corrupt or gone", remedy=resume
        )
    return artifact


def model_stage(run: Run) -> str:
    """Return the stage that the pipeline file promotes, else the only one that makes a model.

    Raises:
        UserError: several stages make models, or none does.
    """
    if rule := promotion_rule(run):
        return rule.stage
    models = [stage.name for stage in run.status().stages if is_promotable(stage.kind)]
    if len(models) == 1:
        return models[0]
    what = f"makes several models: {', '.join(models)}" if models else "makes no model"
    raise UserError(f"run {run.id} {what}", remedy=f"name the stage: {run.id}:STAGE")


def split_target(target: str) -> tuple[str, str]:
    """Split `RUN[:STAGE]`; a missing stage is empty."""
    run, _, stage = target.partition(":")
    return run, stage
