"""Plans and executes runs for the command line, with live table, MLflow mirror and report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from launch.ui import console
from launch.ui.exit_handling import set_crash_log_dir
from launch.ui.options import mlflow_uri, store_flag
from pipeline.errors import HeadwaterError, UserError
from pipeline.status import TERMINAL_STATES

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.execution.plan import ModelResolver, Plan
    from pipeline.execution.run import Run
    from pipeline.execution.runner import Observer
    from pipeline.spec.pipeline_spec import ModelRef, Spec
    from pipeline.storage.artifact import Artifact
    from pipeline.storage.store import Store

FINALIZE_SECONDS = 60.0
"""Time that the driver of a finished run may take to write the report and to send the rest to
MLflow."""
LOCAL_ADDRESS = "local"  # value of `--address` that starts a new local Ray


def plan_pipeline(
    spec: Spec,
    store: Store,
    from_: str | None = None,
    only: str | None = None,
    rerun: Sequence[str] = (),
    strict_code: bool = False,
) -> Plan:
    """Plan a pipeline against a store, with registered models resolved.

    Raises:
        UserError: a named stage does not exist, or a source cannot be read.
    """
    from launch.plan_warnings import add_warnings, epoch_warnings
    from launch.source_code import source_hash
    from pipeline.execution.plan import make_plan

    plan = make_plan(
        spec,
        store,
        from_=from_,
        only=only,
        rerun=rerun,
        strict_code=strict_code,
        resolve_model=model_resolver(store),
        source_hash=source_hash,
    )
    return add_warnings(
        plan, {name: epoch_warnings(name, plan, spec, store) for name in spec.nodes}
    )


def model_resolver(store: Store) -> ModelResolver:
    """Return the function that finds the artifact of a registered model."""

    def resolve(ref: ModelRef) -> Artifact:
        from launch.tracking.model_registry import Registry

        return Registry(store, mlflow_uri()).resolve(ref.model, ref.alias)

    return resolve


class Reporter:
    """Observer that writes the HTML report when the run ends, before the mirror uploads it."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def start(self) -> None:
        """Do nothing: there is nothing to report yet."""

    def stop(self) -> None:
        """Write the report, however the run ended."""
        write_report(self.run)


def execute_run(run: Run, address: str | None = None) -> int:
    """Execute a run and print its summary.

    Args:
        address: Ray cluster to join. Default: a new local one.

    Returns:
        The exit code.

    Raises:
        HeadwaterError: the run could not start, or the engine failed.
    """
    from launch.failures import promotion_failed
    from launch.promotion import promote_after_run
    from launch.ray_launcher import RayLauncher
    from launch.run_summary import print_summary
    from launch.tracking.mirror import Mirror
    from launch.ui.live_table import show_live
    from pipeline.execution.runner import execute, exit_code

    console.echo(f"run {run.id}   store {run.store.root}")
    console.echo(
        f"to follow it from another shell: headwater status --watch{store_flag(run.store)}", "dim"
    )
    console.echo()
    set_crash_log_dir(run.folder, run.secrets())
    mirror = Mirror(run.store, run, mlflow_uri())
    observers: list[Observer] = [Reporter(run), mirror]  # type: ignore[list-item]
    try:
        with show_live(run):
            status = execute(
                run,
                RayLauncher(None if address == LOCAL_ADDRESS else address),
                observers=observers,
                on_finished=promote_after_run,
            )
    except HeadwaterError as error:
        status = run.status()
        if not promotion_failed(status):
            error.remedy = error.remedy or f"headwater resume {run.id}{store_flag(run.store)}"
            raise
    print_summary(run, status)
    return exit_code(run)


def write_report(run: Run) -> Path | None:
    """Write the HTML report; return None if that failed, which never fails the run."""
    from launch.report.run_page import write_run_page

    with suppress(OSError, HeadwaterError):
        return write_run_page(run, run.store)
    return None


def check_resumable(run: Run, store: Store) -> None:
    """Check that no driver works on a run; wait for one that only finalizes a finished run.

    Raises:
        UserError: a driver works on the run.
    """
    deadline = time.monotonic() + FINALIZE_SECONDS
    while (
        run.has_driver() and run.status().state in TERMINAL_STATES and time.monotonic() < deadline
    ):
        time.sleep(0.2)
    if run.has_driver():
        raise UserError(
            f"run {run.id} is already running",
            remedy=f"headwater status {run.id} --watch{store_flag(store)}",
        )
