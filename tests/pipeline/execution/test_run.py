"""Runs and their journals: what is written, what survives, what is derived."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import status as status_module
from pipeline.context import Context
from pipeline.errors import Failure, LeaseLost, NotFound, UserError
from pipeline.execution import journal as journal_module
from pipeline.execution import run as run_module
from pipeline.execution.plan import make_plan
from pipeline.execution.run import Run, list_runs, new_run_id
from pipeline.spec.pipeline_spec import Spec
from pipeline.spec.spec_checker import spec_from_resolved
from pipeline.status import RunStatus, derive_status
from pipeline.storage.lease import Lease
from pipeline.storage.store import PublishRequest, Store

fork = multiprocessing.get_context("fork")
A, B = "a" * 16, "b" * 16


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def planned(name: str, fp: str, verdict: str = "run") -> dict[str, Any]:
    return {
        "name": name,
        "uses": "toy.count",
        "kind": "Number",
        "verdict": verdict,
        "reason": "nothing made it yet",
        "fingerprint": fp,
    }


@pytest.fixture
def run(store: Store) -> Run:
    """A run of two stages, without the files that its driver does not need."""
    made = Run(store, "20260101-0000-calm-heron")
    made.folder.mkdir(parents=True)
    made.append("run.created", pipeline="p", store=str(store.root), origin=None)
    made.append("plan", stages=[planned("one", A), planned("two", B)])
    return made


def publish(store: Store, fp: str) -> None:
    folder = store.work("toy.count", fp)
    context = Context(folder, folder / "log", folder / "cancel", store.root / "cache")
    (context.out / "x").write_text("1")
    context.result(total=6)
    store.publish(
        PublishRequest(
            "toy.count", fp, kind="Number", version=1, payload={}, inputs={}, run={}, seconds=2.5
        )
    )


def states(status: RunStatus) -> list[str]:
    return [stage.state for stage in status.stages]


# --- making and finding ------------------------------------------------------------------------


@pytest.fixture
def spec(toys: Path) -> Spec:
    return spec_from_resolved({"name": "p", "seed": 0, "stages": {"one": {"uses": "toy.count"}}})


def test_a_run_is_created_with_its_pipeline_and_plan(store: Store, spec: Spec) -> None:
    made = Run.create(store, spec, make_plan(spec, store), origin="before")
    assert made.spec() == spec
    assert made.plan() == make_plan(spec, store)
    status = made.status()
    assert (status.state, status.pipeline, status.origin) == ("pending", "p", "before")
    assert states(status) == ["pending"]
    assert [event["event"] for event in made.events()] == ["run.created", "plan"]
    assert repr(made) == f"Run({made.id!r})"


def flip(path: Path, found: bytes) -> None:
    """Flip a bit of the first occurrence of some bytes in a file."""
    content = bytearray(path.read_bytes())
    content[content.index(found)] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_of_a_runs_files_is_noticed(store: Store, spec: Spec) -> None:
    made = Run.create(store, spec, make_plan(spec, store))
    made.append("stage.finished", stage="one", metrics={"total": 6})
    flip(made.folder / "run.yaml", b"seed: 0")
    with pytest.raises(Failure, match=r"run\.yaml: its bytes changed") as caught:
        made.spec()
    assert "restore it" in caught.value.remedy
    flip(made.folder / "plan.json", b"toy.count")
    with pytest.raises(Failure, match="has no plan") as caught:
        made.plan()
    flip(made.folder / "plan.json", b"uoy.count")  # as it was
    assert made.plan()
    flip(made.folder / "plan.json", b"rc32")  # reads like a plan of another version
    with pytest.raises(Failure, match="has no plan"):
        made.plan()
    flip(made.folder / "journal.jsonl", b'{"total": 6')
    assert [event["event"] for event in made.events()] == ["run.created", "plan"]


def test_a_store_that_cannot_be_written_is_named(toys: Path, spec: Spec) -> None:
    store = Store("/sys/no-store-here")
    with pytest.raises(Failure, match="cannot write: ") as caught:
        Run.create(store, spec, make_plan(spec, store))
    assert caught.value.exit_code == 1
    assert "permissions" in caught.value.remedy


def test_a_disk_that_is_full_when_a_run_is_created_is_named(
    store: Store, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(spec, store)
    (store.root / "runs").mkdir(parents=True)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(Failure, match="is full"):
        Run.create(store, spec, plan)


def test_a_run_whose_creation_was_cut_off_has_no_plan(store: Store, spec: Spec) -> None:
    run = Run.create(store, spec, make_plan(spec, store))
    assert run.payload("one") == run.plan().stages[0].payload
    assert run.payload("other") == {}
    (run.folder / "plan.json").unlink()
    with pytest.raises(Failure, match="has no plan") as caught:
        run.plan()
    assert "start it again" in caught.value.remedy
    assert run.payload("one") == {}


def test_runs_of_one_instant_get_different_ids(
    store: Store, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module.time, "time", lambda: 1_795_226_580.99)
    # Other hosts cache listings.
    monkeypatch.setattr(run_module.atomic_io, "list_folder", lambda folder: [])
    ids = [Run.create(store, spec, make_plan(spec, store)).id for _ in range(3)]
    assert ids == sorted(set(ids))
    assert [found.id for found in list_runs(store)] == ids


@given(a=st.floats(0, 4e9), b=st.floats(0, 4e9))
def test_ids_sort_by_time(a: float, b: float) -> None:
    early, late = sorted((a, b))
    assert new_run_id(early) <= new_run_id(late)
    if late - early > 1 / 32:
        assert new_run_id(early) < new_run_id(late)


def test_a_run_comes_after_those_of_a_host_whose_clock_is_ahead(
    store: Store, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.root / "runs" / "zebra-of-another-program").mkdir(parents=True)
    ids = []
    for clock in (1_795_226_639.99, 1_795_223_000.0, 1_795_226_580.5, 1_795_230_000.0):
        monkeypatch.setattr(run_module.time, "time", lambda clock=clock: clock)
        ids.append(Run.create(store, spec, make_plan(spec, store)).id)
        assert Run.find(store).id == ids[-1]
    assert ids == sorted(set(ids))
    assert ids[-1] == new_run_id(1_795_230_000.0)  # the clock counts again once it has caught up


def test_an_id_is_pronounceable() -> None:
    assert new_run_id(1795226592.4921875) == "20261121-0203-calm-heron"


def test_runs_are_found_by_parts_of_their_ids(store: Store) -> None:
    with pytest.raises(NotFound, match="holds no runs"):
        Run.find(store)
    ids = ["20260101-0000-calm-heron", "20260101-0001-calm-wolf", "20260202-0000-bold-wolf"]
    for run_id in ids:
        Run(store, run_id).folder.mkdir(parents=True)
        Run(store, run_id).append("run.created", pipeline="p")
    found = {text: Run.find(store, text).id for text in ("latest", ids[0], "20260202", "heron")}
    assert list(found.values()) == [ids[2], ids[0], ids[2], ids[0]]
    with pytest.raises(NotFound, match=r"several runs match 'wolf': .*calm-wolf, .*bold-wolf"):
        Run.find(store, "wolf")
    with pytest.raises(NotFound) as near:
        Run.find(store, "20260101-0000-calm-herons")
    assert near.value.remedy == f"did you mean {ids[0]}?"
    with pytest.raises(NotFound) as far:
        Run.find(store, "zzz")
    assert "headwater list" in far.value.remedy


# --- writing -----------------------------------------------------------------------------------


def test_events_are_numbered_over_processes(run: Run, store: Store) -> None:
    run.append("note", message="a")
    other = Run(store, run.id)
    other.append("note", message="b")
    assert run.append("note", message="c")["seq"] == 5
    assert [event["seq"] for event in run.events()] == [1, 2, 3, 4, 5]


def test_processes_that_write_at_once_give_each_event_its_number(run: Run, store: Store) -> None:
    together = fork.Barrier(4)

    def write() -> None:
        mine = Run(store, run.id)
        together.wait()
        for _ in range(25):
            mine.append("note", message="x" * 100)

    writers = [fork.Process(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [event["seq"] for event in run.events()] == list(range(1, 103))


def test_threads_do_not_mix_their_lines(run: Run) -> None:
    def write() -> None:
        for _ in range(10):
            run.append("note", message="x" * 100)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event["seq"] for event in run.events()] == list(range(1, 43))


def test_whatever_is_given_is_written_as_json(run: Run) -> None:
    fields = {"path": Path("/x"), "t": (1, None), "s": {2}, "m": {3: float("inf")}, "f": 0.5}
    line = run.append("note", **fields)
    assert run.events()[-1] == line
    assert line["path"] == "/x"
    assert (line["t"], line["s"], line["m"], line["f"]) == ([1, None], [2], {"3": None}, 0.5)


def test_secrets_are_written_as_their_names(
    store: Store, toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    run = Run(store, "r")
    run.folder.mkdir(parents=True)
    run.append("note", message="before there is a pipeline: hf_secret")
    (run.folder / "run.yaml").write_text("token: ${env:HF_TOKEN}\n")
    run.append("note", message="401 for hf_secret", more=[{"hf": "hf_secret"}])
    assert run.secrets() == {"HF_TOKEN"}
    assert run.events()[-1]["message"] == "401 for ${env:HF_TOKEN}"
    assert run.events()[-1]["more"] == [{"hf": "${env:HF_TOKEN}"}]


words = st.text(max_size=12)
lists_of_events = st.lists(st.dictionaries(st.from_regex(r"[a-d]\Z"), words), max_size=6)


@settings(max_examples=25, deadline=None)
@given(before=lists_of_events, cut=st.integers(0, 400), garbage=st.binary(max_size=30))
def test_a_torn_journal_keeps_its_whole_lines_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[dict[str, str]],
    cut: int,
    garbage: bytes,
) -> None:
    run = Run(Store(tmp_path_factory.mktemp("torn")), "r")
    run.folder.mkdir(parents=True)
    written = [run.append("note", **fields) for fields in before]
    whole = run.journal.path.read_bytes() if written else b""
    torn = whole[: max(0, len(whole) - cut)]
    run.journal.path.write_bytes(torn + garbage.replace(b"\n", b" "))
    run = Run(run.store, "r")  # whoever tore it is gone
    kept = run.events()
    assert kept == written[: torn.count(b"\n")]
    added = run.append("note", message="again")
    assert run.events() == [*kept, added]
    assert [event["seq"] for event in run.events()] == list(range(1, len(kept) + 2))


def test_damaged_lines_are_left_out(run: Run) -> None:
    sound = run.events()
    with run.journal.path.open("ab") as journal:
        journal.write(b'\xff\xfe\n[]\n{"seq": "x", "event": "note"}\n{"seq": 9}\n')
    assert run.events() == sound


# --- driving -----------------------------------------------------------------------------------


def test_a_run_has_one_driver(run: Run, store: Store) -> None:
    assert run.status().state == "pending"
    run.open()
    assert run.has_driver()
    assert run.status().state == "running"
    with pytest.raises(UserError, match=f"being executed already: process {os.getpid()} on"):
        Run(store, run.id).open()
    run.append("run.finished", state="finished")
    run.close()
    run.close()
    assert run.status().state == "finished"
    other = Run(store, run.id)
    other.open()
    assert other.status().state == "running"
    other.close()
    assert other.status().state == "interrupted"


def test_a_driver_that_was_replaced_cannot_write(run: Run, store: Store) -> None:
    run.open()
    folder = store.root / "leases" / "run" / run.id
    (folder / "00000002.json").write_text('{"owner": "other"}')
    with pytest.raises(LeaseLost, match="belongs to other"):
        run.append("note")
    run.close()


def test_a_driver_that_died_left_an_interrupted_run(run: Run, store: Store) -> None:
    def drive() -> None:
        run.open()
        run.append("stage.started", stage="one", attempt=1)
        run.append("stage.waiting", stage="two", reason="resources")
        os._exit(9)

    driver = fork.Process(target=drive)
    driver.start()
    driver.join()
    assert driver.exitcode == 9
    status = run.status()
    assert status.state == "interrupted"
    assert states(status) == ["interrupted", "pending"]
    run.open()
    assert run.status().state == "running"
    run.close()


def test_a_driver_that_vanished_with_its_machine_is_watched_until_its_lease_expires(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"heartbeat": 0.05, "expiry": 0.2}
    monkeypatch.setattr(Lease.__init__, "__kwdefaults__", times)
    folder = store.root / "leases" / "run" / run.id
    folder.mkdir(parents=True)
    far = {"owner": run.id, "nonce": "n", "node": "far", "host": "far", "pid": 1, "born": "1"}
    (folder / "00000001.json").write_text(json.dumps(far))
    beat = folder / "00000001.beat"
    beat.write_text("1")
    with pytest.raises(UserError, match="process 1 on far"):
        run.open()
    os.utime(beat, (1, 1))
    began = time.monotonic()
    run.open()
    assert time.monotonic() - began >= 0.2
    run.close()


# --- status ------------------------------------------------------------------------------------


def test_the_status_is_the_contract(run: Run, store: Store) -> None:
    run.open()
    run.append("stage.started", stage="one", attempt=1, fingerprint=A)
    publish(store, A)
    run.append("stage.finished", stage="one", fingerprint=A, seconds=2, metrics={"total": 6})
    run.append("promoted", model="m", version=1, alias="champion", stage="one")
    run.append("promoted", model="m", version=1, alias="best", stage="one")
    run.append("promoted", model="n", version=1, alias="best", stage="one")
    run.append("run.finished", state="finished")
    run.close()
    assert run.status().to_json() == {
        "run": run.id,
        "pipeline": "p",
        "state": "finished",
        "store": str(store.root),
        "stages": [
            {
                "name": "one",
                "uses": "toy.count",
                "state": "finished",
                "reason": "nothing made it yet",
                "kind": "Number",
                "fingerprint": A,
                "path": str(store.root / "artifacts" / "toy.count" / A),
                "attempts": 1,
                "seconds": 2,
                "metrics": {"total": 6},
            },
            {
                "name": "two",
                "uses": "toy.count",
                "state": "pending",
                "reason": "nothing made it yet",
                "kind": "Number",
                "fingerprint": B,
                "path": "",
                "attempts": 0,
                "seconds": None,
                "metrics": {},
            },
        ],
        "registered": [
            {"model": "m", "version": 1, "aliases": ["best", "champion"]},
            {"model": "n", "version": 1, "aliases": ["best"]},
        ],
    }


def test_a_cached_stage_has_the_figures_of_its_artifact(run: Run, store: Store) -> None:
    publish(store, A)
    run.append("stage.cached", stage="one", fingerprint=A)
    run.append("stage.cached", stage="two", fingerprint=B)
    one, two = run.status().stages
    assert (one.metrics, one.seconds, one.state) == ({"total": 6.0}, 2.5, "cached")
    assert (two.path, two.metrics) == ("", {})


def test_a_stage_at_work_shows_its_progress(run: Run, store: Store) -> None:
    folder = store.work("toy.count", A)
    context = Context(folder, folder / "log", folder / "cancel", store.root / "cache")
    context.progress(1, 4, "steps")
    run.append("stage.started", stage="one", attempt=1)
    assert run.status().stages[0].progress["done"] == 1
    (context.observed / "progress.json").write_text("{")
    assert run.status().stages[0].progress == {}


def clock(monkeypatch: pytest.MonkeyPatch, *instants: float) -> None:
    """Replace the clock: one instant per call, the last one repeated."""
    left = list(instants)
    told = SimpleNamespace(
        **{name: getattr(time, name) for name in ("gmtime", "strftime", "monotonic", "sleep")},
        time=lambda: left.pop(0) if len(left) > 1 else left[0],
    )
    monkeypatch.setattr(journal_module, "time", told)
    monkeypatch.setattr(status_module, "time", told)


def test_seconds_are_those_of_all_attempts_and_run_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(now: float) -> float | None:
        clock(monkeypatch, now)
        return run.status().stages[0].seconds

    def note(now: float, what: str, **fields: Any) -> None:
        clock(monkeypatch, now)
        run.append(f"stage.{what}", stage="one", **fields)

    run.open()
    assert seconds(1000) is None
    note(1000, "started", attempt=1, fingerprint=A)
    assert seconds(1007.5) == 7.5
    note(1010, "retry", attempt=1, error="died")
    assert seconds(1015) == 10
    note(1020, "started", attempt=2)
    assert seconds(1021) == 11
    note(1024, "waiting", reason="a damaged input")
    assert seconds(1050) == 14
    note(1060, "started", attempt=3)
    note(1061, "interrupted", attempt=3)
    run.append("plan", stages=[planned("one", A, "resume")])
    assert seconds(1100) == 15
    note(1100, "started", attempt=4)
    note(1104, "finished", attempt=4, seconds=3.5)
    assert seconds(2000) == 18.5
    run.append("plan", stages=[planned("one", B)])
    assert seconds(2000) is None
    run.close()


def test_the_time_of_a_driver_that_died_is_counted_as_far_as_it_was_seen(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drive() -> None:
        clock(monkeypatch, 1000)
        run.open()
        run.append("stage.started", stage="one", attempt=1, fingerprint=A)
        run.append("stage.started", stage="two", attempt=1, fingerprint=B)
        os._exit(9)

    driver = fork.Process(target=drive)
    driver.start()
    driver.join()
    observed = store.work("toy.count", A) / "observed"
    observed.mkdir(parents=True)
    (observed / "progress.json").write_text('{"done": 3, "time": 1060.25}')
    clock(monkeypatch, 5000)
    took = [(stage.state, stage.seconds) for stage in run.status().stages]
    assert took == [("interrupted", 60.25), ("interrupted", 0.0)]
    run.open()
    ended = [event for event in run.events() if event["event"] == "stage.interrupted"]
    assert [(event["stage"], event["time"]) for event in ended] == [
        ("one", "1970-01-01T00:17:40.250Z"),
        ("two", "1970-01-01T00:16:40.000Z"),
    ]
    assert [stage.seconds for stage in run.status().stages] == [60.25, 0.0]
    run.close()


def event(what: str, **fields: Any) -> dict[str, Any]:
    return {"seq": 1, "event": what, **fields}


@pytest.mark.parametrize(
    ("events", "state", "reason", "attempts"),
    [
        ([event("stage.waiting", stage="s", reason="another run")], "waiting", "another run", 0),
        ([event("stage.started", stage="s")], "running", "", 1),
        (
            [
                event("stage.started", stage="s", attempt=1),
                event("stage.retry", stage="s", error="died"),
                event("stage.started", stage="s", attempt=2),
            ],
            "running",
            "died",
            2,
        ),
        ([event("stage.failed", stage="s", error="bad")], "failed", "bad", 0),
        ([event("stage.interrupted", stage="s", at="step 3/9")], "interrupted", "at step 3/9", 0),
        ([event("stage.interrupted", stage="s")], "interrupted", "", 0),
        ([event("stage.skipped", stage="s", reason="x failed")], "skipped", "x failed", 0),
        ([event("stage.whatever", stage="s")], "pending", "", 0),
        ([event("note", message="m")], None, "", 0),
    ],
)
def test_a_stage_is_where_its_last_event_says(
    events: list[dict[str, Any]], state: str | None, reason: str, attempts: int
) -> None:
    stages = derive_status("r", events).stages
    if state is None:
        assert stages == []
        return
    assert [(s.state, s.reason, s.attempts) for s in stages] == [(state, reason, attempts)]


@pytest.mark.parametrize("old", ["nan", "-inf", math.nan, None])
def test_metrics_that_are_not_finite_have_no_value(old: object) -> None:
    finished = event("stage.finished", stage="s", metrics={"x": 1, "perplexity": old})
    metrics = derive_status("r", [finished]).stages[0].metrics
    assert metrics == {"x": 1.0, "perplexity": None}


@pytest.mark.parametrize(
    ("last", "state"),
    [
        (event("run.started"), "running"),
        (event("run.finished", state="refused"), "refused"),
        (event("run.interrupted"), "interrupted"),
        (event("run.something"), "running"),
    ],
)
def test_a_run_is_where_its_last_event_says(last: dict[str, Any], state: str) -> None:
    assert derive_status("r", [event("run.started"), last]).state == state


def test_a_new_plan_keeps_attempts_and_what_was_made(run: Run) -> None:
    run.append("stage.started", stage="one", attempt=1, fingerprint=A)
    run.append("stage.finished", stage="one", fingerprint=A, seconds=3, metrics={"x": 1})
    run.append("stage.started", stage="two", attempt=2, fingerprint=B)
    replanned = [planned("one", A, "cached"), planned("two", "c" * 16), planned("new", B, "skip")]
    run.append("plan", stages=replanned)
    one, two, new = run.status().stages
    assert (one.state, one.seconds, one.metrics, one.attempts) == ("pending", 3, {"x": 1}, 1)
    assert (two.state, two.fingerprint, two.attempts) == ("pending", "c" * 16, 2)
    assert new.state == "skipped"


def test_stages_without_a_plan_have_no_folder(store: Store) -> None:
    run = Run(store, "r")
    run.folder.mkdir(parents=True)
    run.append("stage.started", stage="s")
    assert run.status().stages[0].progress == {}
    assert run.status().store == str(store.root)


def test_replanning_replaces_the_plan(store: Store, spec: Spec) -> None:
    run = Run.create(store, spec, make_plan(spec, store))
    run.write_plan(make_plan(spec, store, rerun=["one"]))
    assert run.plan().stages[0].rerun
    assert len([e for e in run.events() if e["event"] == "plan"]) == 2


def test_logs_of_attempts_stay_in_the_run(run: Run) -> None:
    assert run.attempt_dir("one", 2) == run.folder / "stages" / "one" / "attempt-2"
    assert run.cancel_file.parent == run.folder
    with pytest.raises(UserError):
        run.attempt_dir("../..", 1)
