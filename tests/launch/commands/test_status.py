"""`status` of finished, failed and interrupted runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import sample_run
from command_calls import Call, parse_json

from pipeline.execution.run import Run
from pipeline.storage.store import Store


def test_json_status(run: Run, call: Call) -> None:
    data = parse_json(call("status", "latest", "--json"))
    assert set(data) == {
        "run",
        "pipeline",
        "state",
        "store",
        "stages",
        "registered",
        "failures",
        "next",
    }
    assert (data["run"], data["state"]) == (run.id, "finished")
    keys = "name uses state reason kind fingerprint path attempts seconds metrics"
    assert all(set(stage) == set(keys.split()) for stage in data["stages"])
    assert data["stages"][-1]["metrics"]["perplexity"] == 18.4
    assert all(Path(stage["path"]).is_dir() for stage in data["stages"])


def test_status_table(run: Run, call: Call) -> None:
    lines = call("status").stdout.splitlines()
    assert lines[0] == f"quickstart  {run.id}  10/10 stages  ✓ finished"
    assert lines[4].split()[:5] == ["✓", "gpt", "finished", "loss", "3.2"]


def test_failed_run_suggests_the_next_command(store: Store, call: Call) -> None:
    run = sample_run.make(store.root, failed="gpt")
    done = call("status")
    assert "error: gpt: 3 losses in a row were not finite" in done.stderr
    assert "lower train.lr" in done.stderr
    assert f"next: headwater logs {run.id} gpt --store {store.root}" in done.stderr
    assert "\x1b" not in done.output


def test_run_without_a_driver_is_resumable(store: Store, call: Call) -> None:
    run = sample_run.make(store.root, names=("clean",), finish=False)
    done = call("status", run.id)
    assert "‖ interrupted" in done.stdout
    assert f"next: headwater resume {run.id}" in done.stderr


def test_watching_a_finished_run_prints_it_once(run: Run, call: Call) -> None:
    lines = call("status", "--watch").stdout.splitlines()
    assert len(lines) == 10
    assert lines[0].split()[1:3] == ["clean", "finished"]


def test_watch_and_json_exclude_each_other(run: Run, call: Call) -> None:
    assert "give only one of them" in call("status", "--watch", "--json", code=2).stderr


def test_runs_are_found_by_a_part_of_their_id(run: Run, call: Call) -> None:
    assert parse_json(call("status", "heron", "--json"))["run"] == run.id
    done = call("status", "20261121-0203-calm-herom", code=2)
    assert f"did you mean {run.id}?" in done.stderr


def test_store_flag_is_printed_only_where_needed(
    store: Store, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sample_run.make(store.root, names=("clean",), finish=False)
    monkeypatch.setenv("HEADWATER_STORE", str(store.root))
    done = call("status")
    assert f"next: headwater resume {run.id}   continues" in done.stderr.splitlines()[-1]
