"""What is looked at before a job exists, in under five seconds: head, token, store, MLflow, size.

A job that asks for what is not there would wait for ever, and Ray cannot stop it.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from launch.clusters import Cluster
from launch.jobs import Capacity, Unreachable, WrongToken
from pipeline.errors import Failure, HeadwaterError, Problem, SpecError, UserError
from pipeline.spec import Spec

TIMEOUT = 2.0  # seconds for each question; they are asked at once


class Checks(HeadwaterError):
    """Everything that stands in a submission's way."""

    def __init__(self, found: list[HeadwaterError]) -> None:
        super().__init__(
            "\n".join(str(error) for error in found),
            remedy="; ".join(dict.fromkeys(error.remedy for error in found if error.remedy)),
        )
        self.exit_code = max(error.exit_code for error in found)


def check(cluster: Cluster, spec: Spec) -> tuple[Capacity | None, list[str]]:
    """Ask the head, the store and MLflow, all at once.

    Returns:
        What the cluster has (None if it does not say), and warnings.

    Raises:
        Checks: what is in the way, each with a message of its own.
        SpecError: a stage asks for more than the cluster has.
    """
    questions: list[Callable[[], object]] = [
        lambda: head(cluster),
        lambda: store(cluster.store.root),
        lambda: mlflow(cluster.mlflow),
    ]
    with ThreadPoolExecutor(len(questions)) as threads:
        answers = list(threads.map(_answer, questions))
    warnings = list(_plaintext(cluster))
    problem = answers[2]
    if isinstance(problem, HeadwaterError) and not spec.promote:
        warnings.append(f"{problem}; the run goes on without, and is mirrored later")
        answers[2] = None
    wrong = [answer for answer in answers if isinstance(answer, HeadwaterError)]
    if wrong:
        raise Checks(wrong)
    capacity = answers[0] if isinstance(answers[0], Capacity) else None
    if capacity:
        resources(spec, capacity)
    return capacity, warnings


def _answer(question: Callable[[], object]) -> object:
    try:
        return question()
    except HeadwaterError as error:
        return error


def head(cluster: Cluster) -> Capacity | None:
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


def store(root: Path) -> None:
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


def mlflow(uri: str | None) -> None:
    """Ask a tracking server for its health; what is no server needs no answer.

    Raises:
        UserError: the address holds a password.
        Failure: it does not answer.
    """
    parts = urlsplit(uri or "")
    if parts.scheme not in ("http", "https"):
        return
    where = f"{parts.scheme}://{parts.hostname}:{parts.port or ''}".rstrip(":")
    if parts.username or parts.password:
        raise UserError(
            "MLflow's address holds a password, which would be shown on the cluster",
            where=where,
            remedy="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the cluster",
        )
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=TIMEOUT):  # noqa: S310
            return
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):  # it is there; it keeps its health to itself
            return
        said: object = f"it answers {error.code}"
    except OSError as error:
        said = getattr(error, "reason", None) or error
    raise Failure(
        f"MLflow does not answer: {str(said).lower()}",
        where=where,
        remedy="start it, or correct `mlflow` in the cluster's file or MLFLOW_TRACKING_URI",
    )


def resources(spec: Spec, capacity: Capacity) -> None:
    """Refuse what can never be placed.

    Raises:
        SpecError: with every stage that asks for too much.
    """
    problems = [problem for node in spec.nodes.values() for problem in _too_much(node, capacity)]
    if problems:
        raise SpecError(problems)


def _too_much(node: object, capacity: Capacity) -> Iterator[Problem]:
    from pipeline.spec import Node

    assert isinstance(node, Node)
    workers = node.params.workers
    asked = {
        "CPUs": (workers.cpus, workers.num * workers.cpus, capacity.largest_cpus, capacity.cpus),
        "GPUs": (workers.gpus, workers.num * workers.gpus, capacity.largest_gpus, capacity.gpus),
    }
    for what, (each, all_of_them, largest, total) in asked.items():
        key = f"{node.name}.workers"
        if all_of_them > total:
            said = f"asks for {all_of_them:g} {what}, the cluster has {total:g}"
            yield Problem(key, said, f"lower {key}.num or name a larger cluster", node.where)
        elif each > largest:
            said = f"asks for {each:g} {what} a process, the largest node has {largest:g}"
            yield Problem(key, said, f"lower {key}.{what.lower()}", node.where)


def _plaintext(cluster: Cluster) -> Iterator[str]:
    from launch.jobs import is_loopback

    if cluster.address.startswith("http://") and not is_loopback(cluster.address):
        yield "the token travels unencrypted; reach the head through a tunnel or a private network"
