"""The way to MLflow: where it is, a client that gives up soon, the store's own database."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.atomic_io import move_folder
from pipeline.errors import Failure, HeadwaterError
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

TIMEOUT = 5  # seconds that one request may take; it is tried twice

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"

_VARIABLE = '"$MLFLOW_TRACKING_URI"'
_PASSWORD = re.compile(r"://[^:/\s@]*:\S*@")  # a database's may hold slashes
_USER = re.compile(r"://[^:/\s@]*(?::\S*)?@")
_QUERY = re.compile(r"([?&](?:password|passwd|sslpassword|token|secret)=)[^&\s]+", re.IGNORECASE)


def tracking_uri(store: Store, uri: str | None = None) -> str:
    """Where MLflow is: as told, or MLFLOW_TRACKING_URI, or a database inside the store."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store.root / DATABASE}"


def is_server(uri: str) -> bool:
    """Whether MLflow is another process, which does not see our files."""
    return uri.startswith(("http://", "https://", "databricks"))


def public(text: str) -> str:
    """Text without the users and passwords that the addresses in it may hold."""
    return _QUERY.sub(r"\1***", _USER.sub("://***@", text))


def holds_password(uri: str) -> bool:
    """Whether whoever reads the address could log in."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        return bool(parts.username or parts.password)
    return bool(_PASSWORD.search(uri) or _QUERY.search(uri))


def ui_line(store: Store, uri: str | None = None) -> str:
    """`ui_command` for a shell in which MLFLOW_TRACKING_URI is what it is here; safe to print."""
    where = tracking_uri(store, uri)
    line = shlex.join(ui_command(store, uri))
    return line if where == public(where) else line.replace(shlex.quote(where), _VARIABLE)


def ui_command(store: Store, uri: str | None = None) -> list[str]:
    """The command that shows it all in a browser, on this machine only."""
    where = tracking_uri(store, uri)
    if is_server(where):
        return ["python", "-m", "webbrowser", _USER.sub("://", where)]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", where]
    root = (store.root / ARTIFACTS).as_uri()
    return [*command, "--default-artifact-root", root, "--host", "127.0.0.1", "--workers", "1"]


def connect(uri: str, timeout: int = TIMEOUT) -> MlflowClient:
    """A client that gives up soon. Imports MLflow, which takes seconds."""
    os.environ.update(
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
        MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR="0",
        MLFLOW_HTTP_REQUEST_TIMEOUT=str(timeout),
        MLFLOW_DISABLE_TELEMETRY="true",
    )
    from mlflow import MlflowClient

    _hush()
    return MlflowClient(uri, registry_uri=uri)


def prepare(store: Store, uri: str) -> None:
    """Make the store's own database, if it is to be used and is not there.

    It is made aside and moved into place whole: MLflow's migrations are not one transaction, and
    a database that a kill left in the middle of them can never be opened again. The caller is
    the `sole_writer`.
    """
    target = store.root / DATABASE
    if uri != f"sqlite:///{target}" or target.exists():
        return
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    _hush()
    aside = target.with_name(f".{DATABASE}.new")
    aside.unlink(missing_ok=True)
    (store.root / ARTIFACTS).mkdir(exist_ok=True)
    made = SqlAlchemyStore(f"sqlite:///{aside}", (store.root / ARTIFACTS).as_uri())
    made.engine.dispose()
    move_folder(aside, target)


def _hush() -> None:
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Whatever MLflow raises (it has no one base class) as a `Failure` of one line."""
    try:
        yield
    except HeadwaterError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Failure(
            f"MLflow: {public(reason)[:300]}",
            where=public(uri),
            remedy="check that it is up and what MLFLOW_TRACKING_URI says; nothing is lost",
        ) from error


@contextmanager
def sole_writer(store: Store, patience: float) -> Iterator[None]:
    """One process at a time writes to MLflow for a store: SQLite has one writer.

    Raises:
        Failure: another one was at it for `patience` seconds.
    """
    store.root.mkdir(parents=True, exist_ok=True)
    with (store.root / f".{DATABASE}.lock").open("w") as lock:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    raise Failure("another process is writing to MLflow") from None
                time.sleep(0.05)
        yield
