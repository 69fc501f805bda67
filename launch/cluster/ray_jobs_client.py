"""Client of Ray's Jobs API over plain HTTP; Ray is not imported, so a call takes milliseconds.

Three failures are distinguished because their remedies differ: no answer, a missing token (401)
and the token of another head (403).
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from pipeline.errors import Failure, UserError
from pipeline.execution.resources import Resources

TIMEOUT = 2.0  # seconds for a query
UPLOAD_TIMEOUT = 60.0  # seconds for an upload or a submission
ACTIVE = ("PENDING", "RUNNING")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Unreachable(Failure):
    """No Ray head answers at the address."""


class WrongToken(UserError):
    """The head requires a token or rejects the one that was sent."""


class RayJobsClient:
    """Client of one head's Jobs API."""

    def __init__(self, address: str, token: str = "") -> None:
        self.address = address.rstrip("/")
        self._token = token
        no_proxy = [urllib.request.ProxyHandler({})] if is_loopback(self.address) else []
        self._opener = urllib.request.build_opener(*no_proxy)

    def version(self) -> dict[str, Any]:
        """Return the head's version, the cheapest query that needs the token.

        Raises:
            Unreachable: no answer, or not from a Ray head.
            WrongToken: the token is missing or wrong.
        """
        answer = self._request("GET", "/api/version")
        if not isinstance(answer, dict) or "ray_version" not in answer:
            raise Unreachable("the server at this address is not a Ray head", where=self.address)
        return answer

    def capacity(self) -> list[Resources]:
        """Return the resources of each alive node; empty while the head does not know them yet."""
        answer = self._request("GET", "/api/v0/nodes?detail=true&limit=10000")
        nodes = [n for n in answer["data"]["result"]["result"] if n["state"] == "ALIVE"]
        totals = [node.get("resources_total") or {} for node in nodes]
        return [Resources(total.get("CPU", 0.0), total.get("GPU", 0.0)) for total in totals]

    def has_package(self, name: str) -> bool:
        """Return whether a package of this content-addressed name was uploaded before."""
        return self._find(f"/api/packages/gcs/{quote(name)}") is not None

    def upload(self, name: str, content: bytes) -> None:
        """Upload a zip file.

        Raises:
            Failure: the head refused it; its limit is 100 MiB.
        """
        self._request("PUT", f"/api/packages/gcs/{quote(name)}", content, UPLOAD_TIMEOUT)

    def submit(
        self,
        submission_id: str,
        entrypoint: str,
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
    ) -> None:
        """Start a job, unless one of this id exists.

        Raises:
            Failure: the head refused.
        """
        body = {
            "entrypoint": entrypoint,
            "submission_id": submission_id,
            "runtime_env": runtime_env,
            "metadata": metadata,
        }
        try:
            self._request("POST", "/api/jobs/", json.dumps(body).encode(), UPLOAD_TIMEOUT)
        except Failure:
            # If the answer to an accepted submission was lost, the second one gets status 500.
            if self.get(submission_id) is None:
                raise

    def get(self, submission_id: str) -> dict[str, Any] | None:
        """Return a job's state; None if the head has no job of this id."""
        return self._find(f"/api/jobs/{quote(submission_id)}")

    def active(self) -> list[dict[str, Any]]:
        """Return the submitted jobs that are pending or running."""
        found = self._request("GET", "/api/jobs/", timeout=UPLOAD_TIMEOUT)
        return [j for j in found if j["type"] == "SUBMISSION" and j["status"] in ACTIVE]

    def logs(self, submission_id: str) -> str:
        """Return the output of the job's driver."""
        answer = self._find(f"/api/jobs/{quote(submission_id)}/logs") or {}
        return str(answer.get("logs", ""))

    def stop(self, submission_id: str) -> None:
        """Stop a job (SIGTERM, later SIGKILL)."""
        self._request("POST", f"/api/jobs/{quote(submission_id)}/stop", b"", UPLOAD_TIMEOUT)

    def _find(self, path: str) -> dict[str, Any] | None:
        """Return an answer, or None for status 404."""
        try:
            return self._request("GET", path) or {}
        except _NotFound:
            return None

    def _request(
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
            raise self._http_failure(error) from None
        except (OSError, http.client.HTTPException) as error:
            message = f"no Ray head answers: {_describe_reason(error)}"
            raise Unreachable(message, where=self.address) from None
        try:
            return json.loads(text) if text else None
        except ValueError:
            raise Unreachable(
                "the server at this address is not a Ray head", where=self.address
            ) from None

    def _http_failure(self, error: urllib.error.HTTPError) -> Failure | UserError:
        """Return the error that an HTTP status stands for."""
        if error.code == 401:
            return WrongToken("the head requires a token and none was sent", where=self.address)
        if error.code == 403:
            return WrongToken("the head rejected the token", where=self.address)
        if error.code == 404:
            return _NotFound("the head has nothing of this name", where=self.address)
        lines = error.read(20_000).decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else error.reason
        return Failure(f"the head refused ({error.code}): {reason}", where=self.address)


def run_of(job: Mapping[str, Any]) -> str:
    """Return the run that a job executes, or the job's id if it was not submitted by `submit`."""
    return str((job.get("metadata") or {}).get("run") or job["submission_id"])


class _NotFound(Failure):
    """Status 404."""


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach the address."""
    return (urlsplit(address).hostname or "") in LOOPBACK


def _describe_reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, TimeoutError):
        return f"no answer within {TIMEOUT:g} s"
    return str(getattr(reason, "strerror", None) or reason).lower()
