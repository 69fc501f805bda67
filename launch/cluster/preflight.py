"""Checks before a job is submitted: head, token, store, MLflow and resources, within five seconds.

The checks run concurrently, each for at most `DEADLINE` seconds. A job that requests more resources
than the cluster has would wait forever, and Ray cannot stop it.
"""

from __future__ import annotations

import http.client
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launch.cluster.config import Cluster
from launch.cluster.ray_jobs_client import Unreachable, WrongToken
from launch.tracking.mlflow_client import has_password, hide_credentials
from pipeline.errors import Failure, HeadwaterError, UserError
from pipeline.execution.plan import Plan
from pipeline.execution.resources import Resources, check_placement
from pipeline.spec.pipeline_spec import Spec
from pipeline.storage.store import Store

TIMEOUT = 2.0  # seconds per request
DEADLINE = 4.0  # seconds for all checks


class PreflightError(HeadwaterError):
    """All problems that prevent a submission."""

    def __init__(self, found: list[HeadwaterError]) -> None:
        super().__init__(
            "\n".join(str(error) for error in found),
            remedy="; ".join(dict.fromkeys(error.remedy for error in found if error.remedy)),
        )
        self.exit_code = max(error.exit_code for error in found)


@dataclass(frozen=True)
class PreflightResult:
    """Results of the checks; an error where a check failed."""

    head: list[Resources] | HeadwaterError
    """Resources of each node; empty while the head does not know them yet."""
    store: HeadwaterError | None
    mlflow: HeadwaterError | None
    warnings: tuple[str, ...]

    @property
    def reachable(self) -> bool:
        """True if the head and the store answer."""
        return self.store is None and not isinstance(self.head, HeadwaterError)

    def require_ready(self, promotes: bool) -> tuple[list[Resources], list[str]]:
        """Return the resources of each node, if they are known, and warnings.

        Args:
            promotes: the run registers a model, which needs MLflow; other runs are mirrored later.

        Raises:
            PreflightError: all checks that failed.
        """
        warnings = list(self.warnings)
        if self.mlflow and not promotes:
            warnings.append(f"{self.mlflow}; the run starts without it and is mirrored later")
        found = [self.head, self.store, self.mlflow if promotes else None]
        if errors := [error for error in found if isinstance(error, HeadwaterError)]:
            raise PreflightError(errors)
        return self.head if isinstance(self.head, list) else [], warnings


def run_preflight(cluster: Cluster) -> PreflightResult:
    """Check the head, the store and MLflow concurrently; errors are returned, not raised."""
    uri = cluster.file.mlflow or os.environ.get("MLFLOW_TRACKING_URI", "")
    checks: dict[str, Callable[[], Any]] = {
        f"the head at {cluster.address}": lambda: check_head(cluster),
        f"the store at {cluster.store.root}": lambda: check_store(cluster.store.root),
        f"MLflow at {hide_credentials(uri)}": lambda: check_mlflow(cluster.mlflow),
    }
    found = _run_concurrently(checks, DEADLINE)
    return PreflightResult(found[0], found[1], found[2], tuple(_plaintext(cluster)))


def _run_concurrently(checks: Mapping[str, Callable[[], Any]], seconds: float) -> list[Any]:
    """Return the results or errors of checks, in order.

    A check that hangs, in name resolution or on a file system that is gone, is abandoned: its
    daemon thread ends with this process.
    """
    results: dict[str, Any] = {}

    def run(name: str, check: Callable[[], Any]) -> None:
        try:
            results[name] = check()
        except HeadwaterError as error:
            results[name] = error
        except Exception as error:
            results[name] = Failure(f"{name}: {error!r}")

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in checks.items()]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    timeout = f"did not answer within {seconds:g} s"
    return [
        results.get(name, Failure(f"{name} {timeout}", remedy="headwater doctor"))
        for name in checks
    ]


def check_head(cluster: Cluster) -> list[Resources]:
    """Check that the head answers and accepts the token; return the resources of its nodes.

    Raises:
        Unreachable: no answer.
        WrongToken: the token is missing or wrong.
    """
    remedy = f"headwater cluster status {cluster.name}"
    try:
        jobs = cluster.jobs()
        jobs.version()
        return jobs.capacity()
    except Unreachable as error:
        error.remedy = (
            f"headwater cluster up {cluster.name}   (or check `address` in {cluster.path})"
        )
        raise
    except WrongToken as error:
        where = cluster.token_path or cluster.file.token_env or "the cluster file names none"
        error.remedy = error.remedy or f"check the token ({where}), then {remedy}"
        raise


def check_store(root: Path) -> None:
    """Check that the store is writable, by writing a file.

    Raises:
        UserError: it is not.
    """
    probe = root / f".probe-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        probe.unlink()
    except OSError as error:
        with suppress(OSError):
            probe.unlink()
        raise UserError(
            f"the store is not writable: {(error.strerror or str(error)).lower()}",
            where=str(root),
            remedy="name a folder that this machine and the cluster can write, with --store",
        ) from None


def check_mlflow(uri: str | None) -> None:
    """Check the health of an MLflow server; other URIs need no check.

    Raises:
        UserError: the URI holds a password.
        Failure: the server does not answer.
    """
    if uri and has_password(uri):
        raise UserError(
            "the MLflow URI holds a password, which would be visible on the cluster",
            where=hide_credentials(uri),
            remedy="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (of a database: "
            "MLFLOW_TRACKING_URI) on the cluster, not here",
        )
    parts = urlsplit(uri or "")
    if parts.scheme not in ("http", "https"):
        return
    where = f"{parts.scheme}://{parts.hostname}:{parts.port or ''}".rstrip(":")
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=TIMEOUT):  # noqa: S310
            return
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):  # it answers, but does not serve /health
            return
        reason: object = f"status {error.code}"
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
    raise Failure(
        f"MLflow does not answer: {str(reason).lower()}",
        where=where,
        remedy="start it, or correct `mlflow` in the cluster file or MLFLOW_TRACKING_URI",
    )


def check_resources(spec: Spec, plan: Plan, store: Store, capacity: Sequence[Resources]) -> None:
    """Check that each stage that is still to run fits the nodes of the cluster.

    Raises:
        SpecError: all stages that request more.
    """
    done = {
        stage.name
        for stage in plan.stages
        if stage.action == "skip"
        or (not stage.rerun and store.latest_readable(stage.uses, stage.fingerprint))
    }
    check_placement([node for name, node in spec.nodes.items() if name not in done], capacity)


def _plaintext(cluster: Cluster) -> Iterator[str]:
    from launch.cluster.ray_jobs_client import is_loopback

    if cluster.address.startswith("http://") and not is_loopback(cluster.address):
        yield "the token is sent unencrypted; use a tunnel or a private network"
