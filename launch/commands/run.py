"""`run` and `resume`: carry a pipeline out, here or on a Ray cluster that is already up."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from launch.commands.plan import make_plan, scope_options, show_plan
from launch.ui import console
from launch.ui.options import find_run, open_store, store_flag, store_option

if TYPE_CHECKING:
    from pipeline.execution.run import Run

address_option = click.option(
    "--address",
    metavar="RAY",
    help="Join this Ray cluster (`auto`: the one this machine belongs to).",
)


@click.command()
@click.argument("config", metavar="CONFIG")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@store_option
@address_option
@scope_options
@click.option("--dry-run", is_flag=True, help="Stop after the plan.")
def run(
    config: str,
    overrides: tuple[str, ...],
    store_path: str,
    address: str | None,
    from_: str | None,
    only: str | None,
    rerun: tuple[str, ...],
    strict_code: bool,
    dry_run: bool,
) -> None:
    """Run a pipeline file: everything that is not in the store yet is made.

    KEY=VALUE changes the file for this run, as in `gpt.train.lr=3e-4`. Ctrl-C once stops at the
    next safe point, within 30 s; twice stops now. `headwater resume` goes on.
    """
    from pipeline.execution.run import Run
    from pipeline.spec.pipeline_spec import load

    spec = load(config, overrides)
    store = open_store(store_path)
    plan = make_plan(spec, store, from_, only, rerun, strict_code)
    show_plan(plan)
    if not dry_run:
        _go(Run.create(store, spec, plan), address)


@click.command()
@click.argument("name", metavar="RUN", default="latest")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--from", "from_", metavar="STAGE", help="Make this and all after it again.")
@store_option
@address_option
def resume(
    name: str,
    overrides: tuple[str, ...],
    from_: str | None,
    store_path: str,
    address: str | None,
) -> None:
    """Go on where a run stopped, with what its folder in the store says, from any folder.

    With KEY=VALUE or --from it is a new run that names this one as its origin. A run that was
    submitted goes on on its cluster; --address local brings it here.
    """
    from launch.driver import check_resumable
    from launch.working_directory import at_home

    if "=" in name:
        name, overrides = "latest", (name, *overrides)
    run = find_run(store_path, name)
    check_resumable(run, run.store)
    with at_home(run):
        _go_on(branch(run, overrides, from_), address)


def _go_on(run: Run, address: str | None) -> None:
    from launch.commands.submit import resubmit, submitted_to

    cluster = submitted_to(run)
    if cluster and address is None:
        sys.exit(resubmit(run, cluster))
    if run.status().state == "pending" and cluster:
        run.replan(make_plan(run.spec(), run.store))  # sources may differ from where it was planned
    _go(run, address)


def branch(run: Run, overrides: tuple[str, ...], from_: str | None = None) -> Run:
    """The run itself if nothing is to change, else a new one that names it as its origin.

    Raises:
        SpecError: the changes do not make sense.
    """
    from launch.commands.submit import carry_over
    from pipeline.execution.run import Run
    from pipeline.spec.pipeline_spec import from_resolved

    source = str(run.folder / "run.yaml")
    spec = from_resolved(run.resolved(), overrides, source)
    if not from_ and spec.resolved == from_resolved(run.resolved(), (), source).resolved:
        return run
    plan = make_plan(spec, run.store, from_)
    show_plan(plan)
    made = Run.create(run.store, spec, plan, origin=run.id)
    carry_over(run, made)
    console.say(f"changed, so this is a new run: {made.id}, from {run.id}")
    return made


def _go(run: Run, address: str | None) -> None:
    from launch.driver import drive

    console.say(f"run {run.id}   store {run.store.root}")
    console.say(f"from another shell: headwater status --watch{store_flag(run.store)}", "dim")
    console.say()
    sys.exit(drive(run, address))
