"""What is looked at before a job exists, in under five seconds: head, token, store, MLflow, size.

The questions are asked side by side, and none is waited for longer than `DEADLINE`.

A job that asks for what is not there would wait for ever, and Ray cannot stop it.
"""

from __future__ import annotations

import http.client
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launch.cluster.config import Cluster
from launch.cluster.ray_jobs_client import Capacity, Unreachable, WrongToken
from launch.tracking.mlflow_client import holds_password, public
from pipeline.errors import Failure, HeadwaterError, Problem, SpecError, UserError
from pipeline.execution.plan import Plan
from pipeline.spec.pipeline_spec import Node, Spec
from pipeline.storage.store import Store

TIMEOUT = 2.0  # seconds of silence on a connection
DEADLINE = 4.0  # seconds for all answers; five are promised


class PreflightError(HeadwaterError):
    """Everything that stands in a submission's way."""

    def __init__(self, found: list[HeadwaterError]) -> None:
        super().__init__(
            "\n".join(str(error) for error in found),
            remedy="; ".join(dict.fromkeys(error.remedy for error in found if error.remedy)),
        )
        self.exit_code = max(error.exit_code for error in found)


@dataclass(frozen=True)
class PreflightResult:
    """What was found; an error where something is in the way."""

    head: Capacity | HeadwaterError | None
    """None: the head does not know yet what it has."""
    store: HeadwaterError | None
    mlflow: HeadwaterError | None
    warnings: tuple[str, ...]

    @property
    def reachable(self) -> bool:
        """Whether one can look what is there already."""
        return self.store is None and not isinstance(self.head, HeadwaterError)

    def require_ready(self, promotes: bool) -> tuple[Capacity | None, list[str]]:
        """What the cluster has, and warnings.

        Args:
            promotes: the run needs MLflow at its end; others are mirrored to it later.

        Raises:
            PreflightError: what is in the way, each with a message of its own.
        """
        warnings = list(self.warnings)
        if self.mlflow and not promotes:
            warnings.append(f"{self.mlflow}; the run goes on without, and is mirrored later")
        found = [self.head, self.store, self.mlflow if promotes else None]
        if wrong := [error for error in found if isinstance(error, HeadwaterError)]:
            raise PreflightError(wrong)
        return self.head if isinstance(self.head, Capacity) else None, warnings


def run_preflight(cluster: Cluster) -> PreflightResult:
    """Ask the head, the store and MLflow, all at once; raises nothing."""
    uri = cluster.file.mlflow or os.environ.get("MLFLOW_TRACKING_URI", "")
    questions: dict[str, Callable[[], Any]] = {
        f"the head at {cluster.address}": lambda: check_head(cluster),
        f"the store at {cluster.store.root}": lambda: check_store(cluster.store.root),
        f"MLflow at {public(uri)}": lambda: check_mlflow(cluster.mlflow),
    }
    found = _side_by_side(questions, DEADLINE)
    return PreflightResult(found[0], found[1], found[2], tuple(_plaintext(cluster)))


def _side_by_side(questions: Mapping[str, Callable[[], Any]], seconds: float) -> list[Any]:
    """The answers, or the errors, in order. Nobody waits for a thread that hangs in a name server
    or in a file system that is gone: it ends with this process."""
    answers: dict[str, Any] = {}

    def ask_one(name: str, question: Callable[[], Any]) -> None:
        try:
            answers[name] = question()
        except HeadwaterError as error:
            answers[name] = error
        except Exception as error:
            answers[name] = Failure(f"{name}: {error!r}")

    threads = [threading.Thread(target=ask_one, args=q, daemon=True) for q in questions.items()]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    silent = "gave no answer within"
    return [
        answers.get(name, Failure(f"{name} {silent} {seconds:g} s", remedy="headwater doctor"))
        for name in questions
    ]


def check_head(cluster: Cluster) -> Capacity | None:
    """Ask the head who it is and what it has.

    Raises:
        Unreachable: nobody answers.
        WrongToken: it does not let us in.
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
        where = cluster.token_path or cluster.file.token_env or "no token is named"
        error.remedy = error.remedy or f"check the token ({where}), then {remedy}"
        raise


def check_store(root: Path) -> None:
    """Write a file into the store and remove it.

    Raises:
        UserError: that does not work.
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
    """Ask a tracking server for its health; what is no server needs no answer.

    Raises:
        UserError: the address holds a password.
        Failure: it does not answer.
    """
    if uri and holds_password(uri):
        raise UserError(
            "MLflow's address holds a password, which would be shown on the cluster",
            where=public(uri),
            remedy="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (a database's "
            "address: MLFLOW_TRACKING_URI) on the cluster, not here",
        )
    parts = urlsplit(uri or "")
    if parts.scheme not in ("http", "https"):
        return
    where = f"{parts.scheme}://{parts.hostname}:{parts.port or ''}".rstrip(":")
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=TIMEOUT):  # noqa: S310
            return
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):  # it is there; it keeps its health to itself
            return
        said: object = f"it answers {error.code}"
    except (OSError, http.client.HTTPException) as error:
        said = getattr(error, "reason", None) or error
    raise Failure(
        f"MLflow does not answer: {str(said).lower()}",
        where=where,
        remedy="start it, or correct `mlflow` in the cluster's file or MLFLOW_TRACKING_URI",
    )


def check_resources(spec: Spec, plan: Plan, store: Store, capacity: Capacity) -> None:
    """Refuse what can never be placed, of what is still to be made.

    Raises:
        SpecError: with every stage that asks for too much.
    """
    made = {
        stage.name
        for stage in plan.stages
        if stage.verdict == "skip"
        or (not stage.forced and store.latest_readable(stage.uses, stage.fingerprint))
    }
    nodes = [node for name, node in spec.nodes.items() if name not in made]
    problems = [problem for node in nodes for problem in _too_much(node, capacity)]
    if problems:
        raise SpecError(problems)


def _too_much(node: Node, capacity: Capacity) -> Iterator[Problem]:
    """A stage's processes are placed each on one machine, with all that it asks for."""
    workers, key = node.params.workers, f"{node.name}.workers"
    asked = (("CPUs", workers.cpus, capacity.cpus), ("GPUs", workers.gpus, capacity.gpus))
    for what, each, total in asked:
        if workers.num * each > total:
            said = f"asks for {workers.num * each:g} {what}, the cluster has {total:g}"
            yield Problem(key, said, f"lower {key}.num or name a larger cluster", node.where)
            return
    places = capacity.max_processes(workers.cpus, workers.gpus)
    if places < workers.num:
        one = " and ".join(f"{each:g} {what}" for what, each, _ in asked if each)
        said = f"asks for {workers.num} times {one} of one node, there is room for {places}"
        hint = f"lower {key}.num or what each asks for, or name a larger cluster"
        yield Problem(key, said, hint, node.where)


def _plaintext(cluster: Cluster) -> Iterator[str]:
    from launch.cluster.ray_jobs_client import is_loopback

    if cluster.address.startswith("http://") and not is_loopback(cluster.address):
        yield "the token travels unencrypted; reach the head through a tunnel or a private network"
