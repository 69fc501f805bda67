"""Putting a run's model forward: which artifact, which figures, and one real try of the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.ui.options import mlflow_uri
from pipeline.errors import UserError, did_you_mean
from pipeline.kind import is_promotable

if TYPE_CHECKING:
    from pipeline.execution.run import Run
    from pipeline.storage.artifact import Artifact

SMOKE_SECONDS = 600


def smoke_test(folder: Path) -> None:
    """Load the model and use it once, in a process of its own.

    Raises:
        RuntimeError: it does not load or gives nonsense; the message is its last line.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "stages.models.smoke_test", str(folder)],
            capture_output=True,
            text=True,
            timeout=SMOKE_SECONDS,
            check=False,
            start_new_session=True,  # Ctrl-C in a terminal is for us: a model is not refused for it
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"it gave no answer within {SMOKE_SECONDS} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").split(
            "\n"
        )
        raise RuntimeError(said[-1])


def promote_after_run(run: Run) -> None:
    """What the pipeline file promotes at its end, if it does and the run has that stage.

    Raises:
        GateRefused: a gate said no.
        Failure: MLflow did not answer.
    """
    left_out = {stage.name for stage in run.status().stages if stage.state == "skipped"}
    if (wanted := run.spec().promote) and wanted.stage not in left_out:
        promote_run(run, wanted.stage, wanted.model, wanted.alias, wanted.require)


def promote_run(
    run: Run,
    stage: str,
    model: str,
    alias: str,
    require: tuple[str, ...] = (),
    *,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Promote what a stage of a run made; the run's journal says so.

    Returns:
        The registry's record.
    """
    from launch.tracking.model_registry import Registry

    status = run.status()
    record = Registry(run.store, mlflow_uri()).promote(
        artifact_of(run, stage),
        model,
        alias,
        require,
        {entry.name: entry.metrics for entry in status.stages},
        dry_run=dry_run,
        smoke=smoke_test,
        run=run.id,
    )
    promoted = {"model": model, "version": record["to"]}
    recorded = any(
        e.items() >= promoted.items() and alias in e["aliases"] for e in status.registered
    )
    if not dry_run and not recorded:
        run.append("promoted", **promoted, alias=alias, stage=stage, gates=record["gates"])
    return record


def artifact_of(run: Run, stage: str) -> Artifact:
    """What a stage of a run made.

    Raises:
        UserError: there is no such stage, or it has made nothing yet.
    """
    stages = {entry.name: entry for entry in run.status().stages}
    if stage not in stages:
        raise UserError(f"run {run.id} has no stage {stage!r}", remedy=did_you_mean(stage, stages))
    found = stages[stage]
    again = f"headwater resume {run.id}"
    if found.state not in ("cached", "finished"):
        raise UserError(
            f"{stage} of run {run.id} is {found.state}: it has made nothing yet", remedy=again
        )
    artifact = run.store.find(found.uses, found.fingerprint)
    if artifact is None:
        raise UserError(f"what {stage} of run {run.id} made is damaged or gone", remedy=again)
    return artifact


def model_stage(run: Run) -> str:
    """The stage that is meant when none is named: the file's own, or the only model.

    Raises:
        UserError: there are several models, or none.
    """
    wanted = run.spec().promote
    if wanted:
        return wanted.stage
    models = [stage.name for stage in run.status().stages if is_promotable(stage.kind)]
    if len(models) == 1:
        return models[0]
    what = f"makes several models: {', '.join(models)}" if models else "makes no model"
    raise UserError(f"run {run.id} {what}", remedy=f"name the stage: {run.id}:STAGE")


def split_target(target: str) -> tuple[str, str]:
    """`RUN[:STAGE]` as its two parts."""
    run, _, stage = target.partition(":")
    return run, stage
