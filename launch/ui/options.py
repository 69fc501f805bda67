"""What several commands share: where the store is, how JSON is asked for, which files are named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pipeline.execution.run import Run
    from pipeline.storage.store import Store

DEFAULT_STORE = "headwater-store"

F = TypeVar("F", bound=Callable[..., Any])


def store_option(command: F) -> F:
    """`--store`, HEADWATER_STORE, or ./headwater-store."""
    return click.option(
        "--store",
        "store_path",
        metavar="DIR",
        envvar="HEADWATER_STORE",
        default=DEFAULT_STORE,
        help="Where everything is kept. [HEADWATER_STORE, ./headwater-store]",
    )(command)


def json_option(command: F) -> F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def open_store(path: str) -> Store:
    """The store of that path; nothing is made."""
    from pipeline.storage.store import Store

    return Store(path)


def find_run(store_path: str, name: str) -> Run:
    """A run by its id, an unambiguous part of it, or `latest`.

    Raises:
        NotFound: there is none.
    """
    from pipeline.execution.run import Run

    return Run.find(open_store(store_path), name)


def store_flag(store: Store) -> str:
    """` --store DIR`, unless a new shell here would find the store without it."""
    from launch.working_directory import typed_in

    usual = os.environ.get("HEADWATER_STORE", DEFAULT_STORE)
    same = typed_in() / Path(usual).expanduser() == store.root
    return "" if same else f" --store {_quoted(store.root)}"


def mlflow_uri() -> str | None:
    """MLFLOW_TRACKING_URI, if it is set to something."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
