"""Command-line options that several commands share, and the objects that they name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from launch.ui.working_directory import invocation_directory

if TYPE_CHECKING:
    from pipeline.execution.run import Run
    from pipeline.storage.store import Store

DEFAULT_STORE = "headwater-store"

F = TypeVar("F", bound=Callable[..., Any])


def store_option(command: F) -> F:
    """Add `--store`, which defaults to HEADWATER_STORE, then to ./headwater-store."""
    return click.option(
        "--store",
        "store_path",
        metavar="DIR",
        envvar="HEADWATER_STORE",
        default=DEFAULT_STORE,
        help="Store directory.  [env: HEADWATER_STORE; default: ./headwater-store]",
    )(command)


def json_option(command: F) -> F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def address_option(command: F) -> F:
    """Add `--address`."""
    return click.option(
        "--address",
        metavar="RAY",
        help="Ray cluster to join (`auto`: the cluster of this machine; `local`: a new local one).",
    )(command)


def scope_options(command: F) -> F:
    """Add `--from`, `--only`, `--rerun` and `--strict-code`."""
    for option in (
        click.option("--strict-code", is_flag=True, help="Also rerun stages whose code changed."),
        click.option("--rerun", multiple=True, metavar="STAGE", help="Rerun STAGE; repeatable."),
        click.option("--only", metavar="STAGE", help="Run this stage only."),
        from_option,
    ):
        command = option(command)
    return command


def from_option(command: F) -> F:
    """Add `--from`."""
    return click.option(
        "--from", "from_", metavar="STAGE", help="Rerun STAGE and all stages that depend on it."
    )(command)


def model_option(command: F) -> F:
    """Add `--model`."""
    option = click.option("--model", required=True, metavar="NAME", help="Registered model name.")
    return option(command)


def alias_option(command: F) -> F:
    """Add `--alias`."""
    return click.option(
        "--alias", default="champion", show_default=True, metavar="ALIAS", help="Model alias."
    )(command)


def open_store(path: str) -> Store:
    """Return the store at a path; nothing is created."""
    from pipeline.storage.store import Store

    return Store(path)


def find_run(store_path: str, name: str) -> Run:
    """Return the run of an id, of an unambiguous part of an id, or of `latest`.

    Raises:
        NotFound: no such run.
    """
    from pipeline.execution.run import Run

    return Run.find(open_store(store_path), name)


def store_flag(store: Store) -> str:
    """Return ` --store DIR`, or nothing where a new shell would find the store without it."""
    import shlex

    default = Path(os.environ.get("HEADWATER_STORE", DEFAULT_STORE)).expanduser()
    is_default = invocation_directory() / default == store.root
    return "" if is_default else f" --store {shlex.quote(str(store.root))}"


def mlflow_uri() -> str | None:
    """Return MLFLOW_TRACKING_URI; None if it is unset or empty."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None
