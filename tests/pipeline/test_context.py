"""What a stage reports, before and after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import panels
from pipeline.context import Context, read_series
from pipeline.errors import Failure, Interrupted


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context.local(tmp_path)


def read(context: Context, name: str) -> object:
    return json.loads((context.observed / name).read_text())


def test_a_context_has_its_folders(context: Context) -> None:
    assert context.out.is_dir()
    assert context.scratch.is_dir()
    assert context.cache.is_dir()
    assert context.attempt_dir.is_dir()


def test_progress_is_written_now_and_then_but_always_at_the_end(context: Context) -> None:
    context.progress(1, 9, "shards", rate=float("inf"))
    context.progress(2, 9, "shards")
    first = read(context, "progress.json")
    assert isinstance(first, dict)
    assert (first["done"], first["total"], first["unit"], first["rate"]) == (1, 9, "shards", None)
    context.progress(9, 9)
    assert read(context, "progress.json")["done"] == 9  # type: ignore[index]


def test_series_rewind_to_where_the_work_goes_on(context: Context) -> None:
    for step in range(5):
        context.metrics(step, {"loss": float("nan") if step == 1 else 1.0})
    context.truncate_series(2)
    points = read_series(context.observed / "metrics.jsonl")
    assert [point["step"] for point in points] == [0, 1, 2]
    assert points[1]["loss"] is None
    assert read_series(context.observed / "none.jsonl") == []
    (context.observed / "old.jsonl").write_text('{"step": 3, "loss": "inf"}\n[1]\n{"loss": 2}\n')
    assert read_series(context.observed / "old.jsonl") == [{"step": 3.0, "loss": None}]


def test_a_flipped_bit_of_a_point_takes_the_point(context: Context) -> None:
    for step in range(3):
        context.metrics(step, {"loss": 2.5})
    context.truncate_series(2)
    path = context.observed / "metrics.jsonl"
    for at in range(len(whole := path.read_bytes())):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert {point.get("loss", 2.5) for point in read_series(path)} == {2.5}


def test_a_torn_point_does_not_take_the_next_one_with_it(context: Context, tmp_path: Path) -> None:
    context.metrics(1, {"loss": 1.0})
    with (context.observed / "metrics.jsonl").open("a") as series:
        series.write('{"step": 2, "lo')
    assert len(read_series(context.observed / "metrics.jsonl")) == 1
    again = Context.local(tmp_path)
    again.metrics(2, {"loss": 2.0})
    again.metrics(3, {"loss": 3.0})
    assert [p["step"] for p in read_series(context.observed / "metrics.jsonl")] == [1, 2, 3]


def test_results_and_panels_survive_a_kill(context: Context, tmp_path: Path) -> None:
    context.result(accuracy=0.5)
    context.panel(panels.bars("b", {"a": 1}))
    again = Context.local(tmp_path)
    again.result(loss=1)
    again.panel(panels.bars("c", {"a": 1}))
    again.panel(panels.bars("b", {"a": 2}))
    assert read(context, "results.json") == {"accuracy": 0.5, "loss": 1.0}
    listed = read(context, "panels.json")
    assert isinstance(listed, list)
    assert [(panel["title"], panel["values"]["a"]) for panel in listed] == [("c", 1), ("b", 2)]


def test_a_file_damaged_by_a_power_cut_gives_the_default(context: Context, tmp_path: Path) -> None:
    for name in ("results.json", "panels.json"):
        (context.observed / name).write_bytes(b"\0" * 9)
    again = Context.local(tmp_path)
    again.result(loss=1)
    again.panel(panels.bars("c", {"a": 1}))
    assert read(context, "results.json") == {"loss": 1.0}
    assert len(read(context, "panels.json")) == 1  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_made_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(Failure, match="cannot write"):
        Context.local(tmp_path / "out")


def test_an_unreadable_cancel_file_is_read_again(context: Context) -> None:
    sound = context.cancel_file
    context.cancel_file = sound.with_name("x" * 300)  # longer than a name may be
    assert not context.cancelled
    context.cancel_file = sound
    sound.touch()
    assert context.cancelled


def test_a_resume_point_is_there_for_the_plan(context: Context) -> None:
    context.resume_point(3, 9)
    assert read(context, "resume.json") == {"step": 3, "total": 9}


def test_a_stage_stops_on_request(context: Context) -> None:
    context.check_cancelled()
    context.cancel_file.touch()
    with pytest.raises(Interrupted):
        context.check_cancelled()


def test_no_file_of_a_stage_holds_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = 'row one: quince\nrow two: "medlar" & <sorb>'
    monkeypatch.setenv("ORCHARD_KEY", value)
    cache, secrets = tmp_path / "cache", frozenset({"ORCHARD_KEY"})
    context = Context(tmp_path / "w", tmp_path / "a", tmp_path / "c", cache, secrets=secrets)
    rows = [[f"a {value} b"], *([line] for line in value.splitlines())]
    context.panel(panels.table(value, [value], rows))
    context.panel(panels.bars("b", {value: 1}))
    context.metrics(1, {value: 2.0})
    context.result(**{value: 3.0})
    context.progress(1, 1, value)
    context.log(f"it is {value}, also {value!r} and {json.dumps(value)}")
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "${env:ORCHARD_KEY}" in written
    assert not [word for word in ("quince", "medlar", "sorb") if word in written]


def test_logs_hold_neither_control_characters_nor_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    context = Context(tmp_path, tmp_path, tmp_path / "c", tmp_path, secrets=frozenset({"HF_TOKEN"}))
    context.log("a\x1b[2J\u202eb\tuses hf_secret")
    line = (tmp_path / "log.txt").read_text()
    assert line.endswith(" a\\x1b[2J\\u202eb\tuses ${env:HF_TOKEN}\n")


def test_a_result_that_is_no_number_is_an_error_and_none_is_no_value(tmp_path: Path) -> None:
    context = Context.local(tmp_path)
    with pytest.raises(ValueError, match="text"):
        context.result(loss="text")  # type: ignore[arg-type]
    context.result(loss=None, gain=float("nan"), count=True)
    stored = json.loads((context.observed / "results.json").read_text())
    assert stored == {"count": 1.0, "gain": None, "loss": None}
