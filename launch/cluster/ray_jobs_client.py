"""Ray's Jobs API over plain HTTP: nothing of Ray is imported, so a call costs milliseconds.

What a head can answer is told apart, because each wants another remedy: nobody there, somebody
there who wants a token (401), a token that is not this head's (403).
"""

from __future__ import annotations

import http.client
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from pipeline.errors import Failure, UserError

TIMEOUT = 2.0  # seconds to answer a question
PATIENCE = 60.0  # seconds for an upload, or to take a job
ACTIVE = ("PENDING", "RUNNING")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Unreachable(Failure):
    """Nobody answers at the address."""


class WrongToken(UserError):
    """The head does not accept the token, or wants one."""


@dataclass(frozen=True)
class Capacity:
    """What a cluster has."""

    nodes: tuple[tuple[float, float], ...]
    """CPUs and GPUs of each."""

    @property
    def cpus(self) -> float:
        """CPUs of all nodes together."""
        return sum(cpus for cpus, _ in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes together."""
        return sum(gpus for _, gpus in self.nodes)

    def max_processes(self, cpus: float, gpus: float) -> int:
        """How many processes that each want so much of one node fit at once."""
        return sum(min(_times(cpus, c), _times(gpus, g)) for c, g in self.nodes)


def _times(each: float, there: float) -> int:
    """How often `each` fits."""
    return int(there / each + 1e-9) if each else sys.maxsize


class RayJobsClient:
    """The jobs of one head."""

    def __init__(self, address: str, token: str = "") -> None:
        self.address = address.rstrip("/")
        self._token = token
        no_proxy = [urllib.request.ProxyHandler({})] if is_loopback(self.address) else []
        self._opener = urllib.request.build_opener(*no_proxy)

    def version(self) -> dict[str, Any]:
        """Who answers; the cheapest question that needs the token.

        Raises:
            Unreachable: nobody, or something that is not a Ray head.
            WrongToken: the token is missing or wrong.
        """
        answer = self._ask("GET", "/api/version")
        if not isinstance(answer, dict) or "ray_version" not in answer:
            raise Unreachable("what answers is not a Ray head", where=self.address)
        return answer

    def capacity(self) -> Capacity | None:
        """What the living nodes have together; None while the head does not know yet."""
        answer = self._ask("GET", "/api/v0/nodes?detail=true&limit=10000")
        nodes = [n for n in answer["data"]["result"]["result"] if n["state"] == "ALIVE"]
        have = [node.get("resources_total") or {} for node in nodes]
        found = tuple((each.get("CPU", 0.0), each.get("GPU", 0.0)) for each in have)
        return Capacity(found) if found else None

    def has_package(self, name: str) -> bool:
        """Whether a package of that (content-addressed) name was uploaded before."""
        return self._find(f"/api/packages/gcs/{quote(name)}") is not None

    def upload(self, name: str, content: bytes) -> None:
        """Upload a zip file.

        Raises:
            Failure: the head refused it; it takes 100 MiB at most.
        """
        self._ask("PUT", f"/api/packages/gcs/{quote(name)}", content, PATIENCE)

    def submit(
        self,
        submission_id: str,
        entrypoint: str,
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
    ) -> None:
        """Start a job; if one of that id exists, leave it at that.

        Raises:
            Failure: the head refused.
        """
        request = {
            "entrypoint": entrypoint,
            "submission_id": submission_id,
            "runtime_env": runtime_env,
            "metadata": metadata,
        }
        try:
            self._ask("POST", "/api/jobs/", json.dumps(request).encode(), PATIENCE)
        except Failure:
            # A head that took the job but whose answer was lost says 500 the second time.
            if self.get(submission_id) is None:
                raise

    def get(self, submission_id: str) -> dict[str, Any] | None:
        """What the head knows of a job; None if it knows none of that id."""
        return self._find(f"/api/jobs/{quote(submission_id)}")

    def active(self) -> list[dict[str, Any]]:
        """The jobs that were submitted and are not over."""
        found = self._ask("GET", "/api/jobs/", timeout=PATIENCE)
        return [j for j in found if j["type"] == "SUBMISSION" and j["status"] in ACTIVE]

    def logs(self, submission_id: str) -> str:
        """All that the job's driver printed."""
        answer = self._find(f"/api/jobs/{quote(submission_id)}/logs") or {}
        return str(answer.get("logs", ""))

    def stop(self, submission_id: str) -> None:
        """Ask the job to stop (SIGTERM, later SIGKILL)."""
        self._ask("POST", f"/api/jobs/{quote(submission_id)}/stop", b"", PATIENCE)

    def _find(self, path: str) -> dict[str, Any] | None:
        """An answer, or None for 404."""
        try:
            return self._ask("GET", path) or {}
        except _NoSuchThing:
            return None

    def _ask(
        self, method: str, path: str, body: bytes | None = None, timeout: float = TIMEOUT
    ) -> Any:
        request = urllib.request.Request(self.address + path, body, method=method)  # noqa: S310
        request.add_header("Content-Type", "application/json")
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise Unreachable(f"no Ray head answers: {_said(reason)}", where=self.address) from None
        try:
            return json.loads(text) if text else None
        except ValueError:
            raise Unreachable("what answers is not a Ray head", where=self.address) from None

    def _refusal(self, error: urllib.error.HTTPError) -> Failure | UserError:
        """What an HTTP status means."""
        if error.code == 401:
            return WrongToken("the head wants a token, and none was sent", where=self.address)
        if error.code == 403:
            return WrongToken("the head has another token than the one sent", where=self.address)
        if error.code == 404:
            return _NoSuchThing("the head knows nothing of that name", where=self.address)
        lines = error.read(20_000).decode(errors="replace").strip().splitlines()
        said = lines[-1] if lines else error.reason
        return Failure(f"the head refused ({error.code}): {said}", where=self.address)


def run_of(job: Mapping[str, Any]) -> str:
    """The run that a job carries out; another's job has none, and goes by its own name."""
    return str((job.get("metadata") or {}).get("run") or job["submission_id"])


class _NoSuchThing(Failure):
    """404."""


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address."""
    return (urlsplit(address).hostname or "") in LOOPBACK


def _said(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return f"silence for {TIMEOUT:g} s"
    return str(getattr(reason, "strerror", None) or reason).lower()
