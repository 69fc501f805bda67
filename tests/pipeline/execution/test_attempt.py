"""One attempt in this process: its inputs, its status and its messages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import (
    CorruptArtifact,
    Failure,
    InputError,
    Interrupted,
    LeaseLost,
    ResourcesUnavailable,
    StageStalled,
    WorkerDied,
)
from pipeline.execution.attempt import Job, Outcome, classify_error, run_attempt
from pipeline.stage_registry import find_stage
from pipeline.storage.artifact import Artifact
from pipeline.storage.store import PublishRequest, Store

pytestmark = pytest.mark.usefixtures("toys")
FP = "0123456789abcdef"


def job(root: Path, uses: str = "toy.count", fp: str = FP, **changed: object) -> Job:
    inputs = changed.pop("inputs", {})
    params = find_stage(uses).params.model_validate(changed)
    return Job(root, "run-1", "number", uses, fp, params, inputs, 1)  # type: ignore[arg-type]


def log(attempt: Job) -> str:
    return attempt.attempt_dir.joinpath("log.txt").read_text()


def number(root: Path, fp: str, value: int) -> Artifact:
    assert run_attempt(job(root, fp=fp, value=value)).status == "done"
    return Store(root).publish(
        PublishRequest(
            "toy.count",
            fp,
            kind="Number",
            version=1,
            payload={},
            inputs={},
            run={"id": "run-1", "stage": "number", "attempt": 1},
            seconds=0.1,
        )
    )


def test_errors_leave_the_process_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHARD_KEY", "quince\nab\nmedlar & sorb")
    source = tmp_path / "quince\nab\nmedlar & sorb"
    reading = job(tmp_path, "toy.read", source=str(source))
    attempt = replace(reading, secrets=frozenset({"ORCHARD_KEY"}))
    outcome = run_attempt(attempt)
    assert "${env:ORCHARD_KEY}" in outcome.error
    for text in (outcome.error, outcome.remedy, log(attempt)):
        assert not [word for word in ("quince", "medlar", "sorb") if word in text]


def test_the_work_is_left_for_the_driver_to_publish(tmp_path: Path) -> None:
    outcome = run_attempt(job(tmp_path, value=3))
    assert outcome.status == "done"
    assert outcome.seconds > 0
    assert (tmp_path / f"work/toy.count/{FP}/out/number.txt").read_text() == "18\n"


def test_a_second_attempt_goes_on(tmp_path: Path) -> None:
    broken = job(tmp_path, trouble="raise")
    assert run_attempt(broken).status == "error"
    mended = job(tmp_path)
    assert run_attempt(mended).status == "done"
    assert "begins at step 2" in log(mended)


@pytest.mark.parametrize(
    ("trouble", "status", "error", "remedy"),
    [
        ("user", "user", "toy: the number is odd", "give an even one"),
        ("worker", "worker", "rank 1 vanished", "look at its log"),
        ("stuck", "worker", "no step for 60 s", "`headwater logs run-1 number` shows more"),
        ("stray", "interrupted", "a stray signal", "`headwater logs run-1 number` shows more"),
        ("damaged", "corrupt", "a shard of its own is damaged", "`headwater logs"),
        ("memory", "worker", "out of memory", "lower the stage's batch or workers"),
        ("exit", "error", "SystemExit: 3", "`headwater logs run-1 number` shows more"),
        ("raise", "error", "ValueError: seven is", "`headwater logs run-1 number` shows more"),
        ("full", "error", "is full: ", "free some space"),
        (
            "nothing",
            "error",
            "returned without output",
            "write its files under `out`",
        ),
    ],
)
def test_every_error_has_a_status_and_a_message(
    tmp_path: Path, trouble: str, status: str, error: str, remedy: str
) -> None:
    outcome = run_attempt(job(tmp_path, trouble=trouble))
    assert outcome.status == status
    assert error in outcome.error
    assert outcome.remedy.startswith(remedy)


def test_an_unknown_error_shows_its_line_and_logs_its_traceback(tmp_path: Path) -> None:
    attempt = job(tmp_path, trouble="raise")
    assert run_attempt(attempt).error.startswith("toy.py:")
    assert "Traceback (most recent call last):" in log(attempt)
    assert "not a number" in log(attempt)


def test_a_known_error_leaves_no_traceback(tmp_path: Path) -> None:
    attempt = job(tmp_path, trouble="user")
    run_attempt(attempt)
    assert "Traceback" not in log(attempt)
    assert "toy: the number is odd" in log(attempt)


def test_a_cancelled_run_starts_nothing(tmp_path: Path) -> None:
    attempt = job(tmp_path)
    tmp_path.joinpath("runs/run-1").mkdir(parents=True)
    tmp_path.joinpath("runs/run-1/cancel").write_text("cancel\n")
    assert run_attempt(attempt).status == "interrupted"
    assert "begins" not in log(attempt)


def test_a_store_that_cannot_be_written_is_an_outcome(tmp_path: Path) -> None:
    tmp_path.joinpath("work").write_text("a file where a folder should be")
    assert run_attempt(job(tmp_path)).status == "error"


def test_inputs_come_as_declared_one_or_many(tmp_path: Path) -> None:
    one, two = number(tmp_path, "1" * 16, 1), number(tmp_path, "2" * 16, 2)
    inputs = {"numbers": (one.path, two.path), "base": (one.path,)}
    assert run_attempt(job(tmp_path, "toy.add", inputs=inputs)).status == "done"
    assert (tmp_path / f"work/toy.add/{FP}/out/number.txt").read_text() == "34\n"


def test_a_flipped_bit_is_found_before_use(tmp_path: Path) -> None:
    artifact = number(tmp_path, "1" * 16, 1)
    artifact.path.joinpath("number.txt").write_text("11\n")
    outcome = run_attempt(job(tmp_path, "toy.add", inputs={"numbers": (artifact.path,)}))
    assert outcome.status == "corrupt"
    assert "its bytes changed" in outcome.error
    assert not artifact.path.exists()
    assert Store(tmp_path).corruption_reason("toy.count", "1" * 16)


# --- classes -----------------------------------------------------------------------------------


def outcome_of(error: BaseException) -> Outcome:
    return classify_error(error, Path("/"), "look there")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("x"), "user"),
        (Interrupted("x"), "interrupted"),
        (CorruptArtifact("x"), "corrupt"),
        (WorkerDied("x"), "worker"),
        (StageStalled("x"), "worker"),
        (ResourcesUnavailable("x"), "unschedulable"),
        (LeaseLost("x"), "worker"),
        (Failure("x"), "error"),
        (MemoryError(), "worker"),
        (KeyboardInterrupt(), "interrupted"),
        (ZeroDivisionError(), "error"),
    ],
)
def test_classes_of_errors(error: BaseException, status: str) -> None:
    assert outcome_of(error).status == status


def test_an_error_without_a_message_shows_its_class() -> None:
    assert outcome_of(ZeroDivisionError()).error == "ZeroDivisionError"


def test_rays_errors_are_classed_by_what_died() -> None:
    from ray import exceptions as ray

    def preempted() -> ray.RayActorError:
        return ray.RayActorError(preempted=True)

    for error, status in [
        (ray.WorkerCrashedError(), "worker"),
        (ray.ActorDiedError(), "worker"),
        (ray.OutOfMemoryError("x"), "worker"),
        (ray.NodeDiedError("x"), "preempted"),
        (ray.LocalRayletDiedError(), "preempted"),
        (preempted(), "preempted"),
        (ray.TaskCancelledError(), "worker"),
        (ray.RaySystemError("x"), "worker"),
        (ray.RayTaskError("f", "trace", InputError("bad", remedy="mend")), "user"),
        (ray.RayTaskError("f", "trace", ray.WorkerCrashedError()), "worker"),
        (ray.RayTaskError("f", "trace", ValueError("bad")).as_instanceof_cause(), "error"),
    ]:
        assert outcome_of(error).status == status, error
    assert "out of memory" in outcome_of(ray.OutOfMemoryError("x")).error


def test_an_error_from_a_task_keeps_message_and_remedy() -> None:
    from ray.exceptions import RayTaskError

    error = RayTaskError("f", "trace", InputError("bad", where="a.yaml:3", remedy="mend it"))
    outcome = outcome_of(error.as_instanceof_cause())
    assert (outcome.error, outcome.remedy) == ("a.yaml:3: bad", "mend it")
