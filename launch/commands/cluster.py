"""`cluster up|down|status`: a local head with a token on loopback, and what any cluster has."""

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
    """Start, stop or look at a cluster of configs/clusters (`local` if none is named)."""


@cluster.command()
@name_argument
@store_option
def up(name: str, store_path: str) -> None:
    """Start a Ray head on this machine: on loopback only, with a token that only you can read."""
    from launch.cluster import local_head
    from launch.cluster.config import load_cluster

    found = load_cluster(name, store_path)
    began = local_head.start(found)
    capacity = found.jobs().capacity()
    console.echo(f"{found.name} is up{'' if began else ' already'} at {found.address}", "green")
    if capacity:
        console.echo(f"  has         {capacity.cpus:g} CPUs, {capacity.gpus:g} GPUs")
    console.echo(f"  token       {found.token_path} (only you can read it)")
    console.echo(f"  log         {found.state / local_head.LOG}")
    console.suggest_command(f"headwater submit CONFIG --cluster {name}{store_flag(found.store)}")


@cluster.command()
@name_argument
@click.option("--now", is_flag=True, help="Also while runs are at work on it.")
@store_option
def down(name: str, now: bool, store_path: str) -> None:
    """Stop the head that `up` started, and nothing else."""
    from launch.cluster import local_head
    from launch.cluster.config import load_cluster

    found = load_cluster(name, store_path)
    if local_head.is_up(found) and not now:
        busy = _at_work(found)
        if busy:
            line = f"headwater cancel {busy[0]}{store_flag(found.store)}"
            raise UserError(
                f"{len(busy)} at work on {found.name}: {', '.join(busy)}",
                remedy=f"{line}, wait for it, or --now",
            )
    ended = local_head.stop(found)
    console.echo(f"{found.name} is down" if ended else f"{found.name} was not up")


def _at_work(found: Cluster) -> list[str]:
    """The runs on a cluster. One that is over is given a minute: its job is still writing the
    report and sending the rest to MLflow."""
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
    """Show whether a cluster answers, what it has and what it does. Exit code 1: it is not up."""
    from launch.cluster.config import load_cluster

    found = load_cluster(name, store_path)
    data = look_at(found)
    if as_json:
        console.print_json(data)
    else:
        _show(data)
    if data["problem"]:
        if not as_json:
            console.suggest_command(data["remedy"])
        sys.exit(1)


def look_at(found: Any) -> dict[str, Any]:
    """What `cluster status --json` prints."""
    from launch.cluster import local_head

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
            data["resources"] = {
                "nodes": len(capacity.nodes),
                "cpus": capacity.cpus,
                "gpus": capacity.gpus,
            }
        keys = ("submission_id", "status", "start_time")
        data["jobs"] = [{key: job[key] for key in keys} for job in jobs.active()]
    except HeadwaterError as error:
        data["problem"] = error.message
        data["remedy"] = error.remedy or f"headwater cluster up {found.name}"
    return data


def _show(data: dict[str, Any]) -> None:
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
            f"  has         {have['cpus']:g} CPUs, {have['gpus']:g} GPUs, {have['nodes']} nodes"
        )
    for job in data["jobs"]:
        console.echo(f"  {job['status'].lower():<11} {job['submission_id']}")
    if not data["jobs"]:
        console.echo("  runs        none")
