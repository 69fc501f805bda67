from __future__ import annotations

from pathlib import Path

import pytest
import sample_run

from launch.tracking import mlflow_sync


def test_parse_points() -> None:
    line = b'{"step": 3, "time": 1.5, "loss": 2, "lr": "nan", "name": "x", "top 5%": Infinity}'
    assert list(mlflow_sync.parse_points(line)) == [
        ("loss", 2.0, 1500, 3),
        ("lr", None, 1500, 3),
        ("name", None, 1500, 3),
        ("top 5_", None, 1500, 3),
    ]


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b'{"step": 1}', b'{"step": null, "time": 1}', b'{"time": 1, "a": 2}']
)
def test_corrupt_line_has_no_points(line: bytes) -> None:
    assert list(mlflow_sync.parse_points(line)) == []


def test_metric_key() -> None:
    assert mlflow_sync.metric_key("/eval loss: µ%/x.y-z") == "eval loss_ __/x.y-z"


def test_stage_spans() -> None:
    def event(second: int, what: str, **more: str) -> dict[str, str]:
        return {"time": f"1970-01-01T00:00:{second:02d}.500Z", "event": what, **more}

    events = [
        event(1, "run.started"),
        event(2, "stage.started", stage="a"),
        event(5, "stage.finished", stage="a"),
        event(9, "run.finished"),
    ]
    assert mlflow_sync.event_times(events) == {"": (1500, 9500), "a": (2500, 5500)}


def test_identity_params(tmp_path: Path) -> None:
    run = sample_run.make(tmp_path, names=("clean",))
    assert mlflow_sync.identity_params(run, "clean") == {
        "sources": ["python:docs"],
        "languages": ["en"],
    }
    assert mlflow_sync.identity_params(run, "other") == {}


def test_external_sources() -> None:
    assert list(mlflow_sync.external_sources({"b": "2", "a": "1"})) == [
        ("source", "a", "1"),
        ("source", "b", "2"),
    ]
