"""Connection to MLflow: its URI, a client with short timeouts, the database inside the store."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from launch.tracking.mlflow_compat import (
    configure_client,
    create_database,
    database_uri,
    default_location,
    replace_locations,
    silence_loggers,
)
from pipeline.atomic_io import move_folder
from pipeline.errors import Failure, HeadwaterError
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

TIMEOUT = 5  # seconds per request, which is tried twice

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"

_VARIABLE = '"$MLFLOW_TRACKING_URI"'
_PASSWORD = re.compile(r"://[^:/\s@]*:\S*@")  # the password of a database may hold slashes
_USER = re.compile(r"://[^:/\s@]*(?::\S*)?@")
_QUERY = re.compile(r"([?&](?:password|passwd|sslpassword|token|secret)=)[^&\s]+", re.IGNORECASE)


def tracking_uri(store: Store, uri: str | None = None) -> str:
    """Return the given URI, else MLFLOW_TRACKING_URI, else the database inside the store."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or own_uri(store.root)


def own_uri(root: Path) -> str:
    """Return the URI of the database inside the store at a path."""
    return database_uri(root / DATABASE)


def is_server(uri: str) -> bool:
    """Return whether the URI names a server, which cannot read the files of the store."""
    return uri.startswith(("http://", "https://", "databricks"))


def hide_credentials(text: str) -> str:
    """Replace users and passwords in the URIs of a text by `***`."""
    return _QUERY.sub(r"\1***", _USER.sub("://***@", text))


def has_password(uri: str) -> bool:
    """Return whether the URI contains credentials that allow a login."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        return bool(parts.username or parts.password)
    return bool(_PASSWORD.search(uri) or _QUERY.search(uri))


def ui_command_line(store: Store, uri: str | None = None) -> str:
    """Return `ui_command` as a shell line without credentials: a URI that has some is replaced by
    the variable MLFLOW_TRACKING_URI."""
    full = tracking_uri(store, uri)
    line = shlex.join(ui_command(store, uri))
    return line if full == hide_credentials(full) else line.replace(shlex.quote(full), _VARIABLE)


def ui_command(store: Store, uri: str | None = None) -> list[str]:
    """Return the command that opens the MLflow UI, reachable from this machine only."""
    full = tracking_uri(store, uri)
    if is_server(full):
        return ["python", "-m", "webbrowser", _USER.sub("://", full)]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", full]
    root = (store.root / ARTIFACTS).as_uri()
    return [*command, "--default-artifact-root", root, "--host", "127.0.0.1", "--workers", "1"]


def connect(uri: str, timeout: int = TIMEOUT) -> MlflowClient:
    """Return a client with short timeouts. Imports MLflow, which takes seconds."""
    configure_client(timeout)
    from mlflow import MlflowClient

    silence_loggers()
    return MlflowClient(uri, registry_uri=uri)


def ensure_database(store: Store, uri: str) -> None:
    """Create the store's own database if the URI names it and it does not exist.

    It is created under another name and moved into place when it is complete: MLflow's migrations
    are not one transaction, and a database that was killed in the middle of them cannot be opened
    again. The caller holds `writer_lock`.
    """
    target = store.root / DATABASE
    if uri != own_uri(store.root) or target.exists():
        return
    incomplete = target.with_name(f".{DATABASE}.new")
    incomplete.unlink(missing_ok=True)
    (store.root / ARTIFACTS).mkdir(exist_ok=True)
    create_database(incomplete, store.root / ARTIFACTS)
    move_folder(incomplete, target)


def former_roots(store: Store, own: bool) -> list[Path]:
    """Return the folders where the store was when its runs were created, and the one that its `own`
    database was last made to follow, if it has moved since."""
    roots = set()
    for journal in store.root.glob("runs/*/journal.jsonl"):
        with suppress(OSError, ValueError), journal.open("rb") as lines:
            roots.add(Path(json.loads(lines.readline()).get("store") or store.root))
    if own:
        location, found, _ = default_location(own_uri(store.root)).rpartition(f"/{ARTIFACTS}/")
        roots |= {Path(url2pathname(urlsplit(location).path))} if found else set()
    # Another name of the folder is no other place.
    return sorted(root for root in roots if not (root.exists() and root.samefile(store.root)))


def relocate(store: Store, uri: str) -> int:
    """Make MLflow's locations in a store that has moved those where the store is now.

    The caller holds `writer_lock`. A server keeps files of its own, which do not move. A database
    outside the store follows only if nothing is left at the old place: else the store is a copy.

    Returns:
        The number of locations that were replaced.
    """
    own = uri == own_uri(store.root)
    if is_server(uri) or (own and not (store.root / DATABASE).exists()):
        return 0
    former = [root for root in former_roots(store, own) if own or not root.exists()]
    return sum(
        replace_locations(uri, f"{old}/", f"{new}/")
        for root in former
        for old, new in ((root.as_uri(), store.root.as_uri()), (str(root), str(store.root)))
    )


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Convert every exception of MLflow, which has no common base class, to a `Failure`."""
    try:
        yield
    except HeadwaterError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Failure(
            f"MLflow: {hide_credentials(reason)[:300]}",
            where=hide_credentials(uri),
            remedy="check that MLflow is up and MLFLOW_TRACKING_URI is right; no data is lost",
        ) from error


@contextmanager
def writer_lock(store: Store, timeout: float) -> Iterator[None]:
    """Hold the store's lock for writing to MLflow: SQLite allows one writer.

    Raises:
        Failure: another process held it for `timeout` seconds.
    """
    store.root.mkdir(parents=True, exist_ok=True)
    with (store.root / f".{DATABASE}.lock").open("w") as lock:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    raise Failure("another process is writing to MLflow") from None
                time.sleep(0.05)
        yield
