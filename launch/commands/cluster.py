"""`cluster up|down|status`: start, stop and inspect Ray clusters."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from launch.cluster.ray_jobs_client import run_of
from launch.driver import FINALIZE_SECONDS
from launch.ui import console
from launch.ui.options import json_option, store_flag, store_option
from pipeline.errors import HeadwaterError, NotFound, UserError
from pipeline.status import TERMINAL_STATES

if TYPE_CHECKING:
    from launch.cluster.config import Cluster

name_argument = click.argument("name", metavar="[NAME]", default="local")


@click.group()
def cluster() -> None:
    """Start, stop or inspect a cluster of configs/clusters. Default: `local`."""


@cluster.command()
@name_argument
@store_option
def up(name: str, store_path: str) -> None:
    """Start a Ray head on this machine, on loopback only and with a private token."""
    from launch.cluster import local_head
    from launch.cluster.config import load_cluster
    from pipeline.execution.resources import Resources

    found = load_cluster(name, store_path)
    started = local_head.start(found)
    capacity = found.jobs().capacity()
    console.echo(f"{found.name} is {'' if started else 'already '}up at {found.address}", "green")
    if capacity:
        total, wanted = sum(capacity, Resources(0)), found.file.resources
        console.echo(f"  resources   {total}")
        if not started and (wanted.cpus or total.cpus, wanted.gpus) != (total.cpus, total.gpus):
            down = f"headwater cluster down {name}"
            console.echo(f"  the cluster file has other resources; `{down}` first", "yellow")
    console.echo(f"  token       {found.token_path} (mode 600)")
    console.echo(f"  log         {found.state / local_head.LOG}")
    console.suggest_command(f"headwater submit CONFIG --cluster {name}{store_flag(found.store)}")


@cluster.command()
@name_argument
@click.option("--now", is_flag=True, help="Also while runs use it.")
@store_option
def down(name: str, now: bool, store_path: str) -> None:
    """Stop the head that `up` started; other Ray processes are not affected."""
    from launch.cluster import local_head
    from launch.cluster.config import load_cluster

    found = load_cluster(name, store_path)
    if local_head.is_up(found) and not now:
        busy = active_runs(found)
        if busy:
            command = f"headwater cancel {busy[0]}{store_flag(found.store)}"
            raise UserError(
                f"{found.name} is executing {len(busy)} run(s): {', '.join(busy)}",
                remedy=f"{command}, wait for them to end, or add --now",
            )
    ended = local_head.stop(found)
    console.echo(f"{found.name} is down" if ended else f"{found.name} was not up")


def active_runs(found: Cluster) -> list[str]:
    """Return the runs of a cluster's active jobs, after waiting for jobs that only finalize a
    finished run."""
    deadline = time.monotonic() + FINALIZE_SECONDS
    while busy := [run_of(job) for job in found.jobs().active()]:
        if time.monotonic() > deadline or not all(_is_over(found, run) for run in busy):
            break
        time.sleep(0.5)
    return busy


def _is_over(found: Cluster, run_id: str) -> bool:
    from pipeline.execution.run import Run

    try:
        return Run.find(found.store, run_id).status().state in TERMINAL_STATES
    except NotFound:
        return False


@cluster.command(name="status")
@name_argument
@store_option
@json_option
def cluster_status(name: str, store_path: str, as_json: bool) -> None:
    """Show whether a cluster is up, its resources and its jobs. Exit code 1: it is not up."""
    from launch.cluster.config import load_cluster

    found = load_cluster(name, store_path)
    data = describe_cluster(found)
    if as_json:
        console.print_json(data)
    else:
        _print_status(data)
    if data["problem"]:
        if not as_json:
            console.suggest_command(data["remedy"])
        sys.exit(1)


def describe_cluster(found: Cluster) -> dict[str, Any]:
    """Return what `cluster status --json` prints."""
    from launch.cluster import local_head
    from pipeline.execution.resources import Resources

    data: dict[str, Any] = {
        "cluster": found.name,
        "file": str(found.path),
        "address": found.address,
        "pid": local_head.pid(found),
        "ray": "",
        "resources": {},
        "jobs": [],
        "problem": "",
        "remedy": "",
    }
    try:
        jobs = found.jobs()
        data["ray"] = jobs.version()["ray_version"]
        if capacity := jobs.capacity():
            data["resources"] = {"nodes": len(capacity), **vars(sum(capacity, Resources(0)))}
        keys = ("submission_id", "status", "start_time")
        data["jobs"] = [{key: job[key] for key in keys} for job in jobs.active()]
    except HeadwaterError as error:
        data["problem"] = error.message
        data["remedy"] = error.remedy or f"headwater cluster up {found.name}"
    return data


def _print_status(data: dict[str, Any]) -> None:
    word = f"not up: {data['problem']}" if data["problem"] else "up"
    console.echo(f"{data['cluster']} is {word}", "red" if data["problem"] else "green")
    console.echo(f"  address     {data['address']}")
    if data["problem"]:
        return
    have = data["resources"]
    console.echo(
        f"  Ray         {data['ray']}" + (f", process {data['pid']}" if data["pid"] else "")
    )
    if have:
        console.echo(
            f"  resources   {have['cpus']:g} CPUs, {have['gpus']:g} GPUs, {have['nodes']} nodes"
        )
    for job in data["jobs"]:
        console.echo(f"  {job['status'].lower():<11} {job['submission_id']}")
    if not data["jobs"]:
        console.echo("  jobs        none")
