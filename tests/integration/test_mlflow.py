"""The mirror and the registry against a real MLflow: SQLite in the store, and a server."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sample_run

from launch.report import run_page
from launch.tracking import mirror, mlflow_client
from launch.tracking.cursor import read_cursor, unsynced_reason
from launch.tracking.mirror import Mirror
from launch.tracking.mlflow_client import connect
from launch.tracking.mlflow_sync import RunSynchronizer
from launch.tracking.model_registry import Registry
from pipeline import panels
from pipeline.errors import CorruptArtifact, Failure, GateRefused, NotFound
from pipeline.execution.run import Run
from pipeline.storage.artifact import Artifact
from pipeline.storage.store import Store

pytestmark = pytest.mark.integration

NAMES = ("clean", "tokenizer", "tokens", "gpt")
FIGURES = {"evaluate": {"perplexity": 18.4}, "reward": {"accuracy": 0.81}}
STEPS = 700


@pytest.fixture(scope="module", autouse=True)
def _no_address() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose mirror followed it through a kill, a rewind and a resume."""
    run = sample_run.make(
        tmp_path_factory.mktemp("mlflow") / "store", names=NAMES[:3], finish=False
    )
    planned = [sample_run._planned(name) for name in NAMES]
    (run.folder / "plan.json").write_text(json.dumps({"stages": planned}))
    stages = {n: {k: v for k, v in sample_run.STAGES[n].items() if k != "kind"} for n in NAMES}
    (run.folder / "run.yaml").write_text(json.dumps({"name": "quickstart", "stages": stages}))
    run.append("plan", stages=[{**s, "verdict": "cached"} for s in planned[:3]] + planned[3:])
    for name in NAMES[:3]:
        run.append("stage.cached", stage=name, fingerprint=sample_run.print_of(name))
    mirror = Mirror(run.store, run)
    before = time.monotonic()
    mirror.start()
    assert time.monotonic() - before < 5  # the driver waits for nothing
    context = sample_run.begin(run, "gpt")
    sample_run.write_series(context, "gpt", STEPS, stop=500)
    wait_for(run, lambda cursor: step_of(cursor, "gpt") == 499)
    run.append("stage.interrupted", stage="gpt", at=400)
    run.append("run.interrupted")
    run.append("run.started", pid=2, host="calm")
    context = sample_run.begin(run, "gpt")
    context.truncate_series(399)
    sample_run.write_series(context, "gpt", STEPS, start=400)
    sample_run.publish(run, "gpt", context=context)
    run.append("run.finished", state="finished")
    run_page.write_run_page(run, run.store)
    assert mirror.stop(240), mirror.problem
    return run


def wait_for(run: Run, reached: Any, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not reached(read_cursor(run)):
        assert time.monotonic() < deadline, (run.folder / "mlflow.log").read_text()
        time.sleep(0.05)


def step_of(cursor: dict[str, Any], stage: str) -> int:
    found = [e for key, e in cursor.get("stages", {}).items() if key.startswith(f"{stage}/")]
    return int(found[0].get("step", -1)) if found else -1


def runs_of(client: Any, run: Run) -> dict[str, Any]:
    """The MLflow runs of a run by stage, '' for the pipeline's own; each must be there once."""
    experiment = client.get_experiment_by_name("quickstart").experiment_id
    found = client.search_runs([experiment], f"tags.`headwater.run` = '{run.id}'")
    names = Counter(one.data.tags.get("headwater.stage", "") for one in found)
    assert set(names.values()) == {1}, names
    return {one.data.tags.get("headwater.stage", ""): one for one in found}


def assert_exact(client: Any, run: Run, stage: str = "gpt", steps: int = STEPS) -> None:
    """Every point of the series once: none lost, none doubled, values as written."""
    mlflow_run = runs_of(client, run)[stage].info.run_id
    expected = dict(sample_run.points(stage, steps))
    for key in ("loss", "lr", "grad_norm", "tokens_per_second", "eval_loss"):
        history = client.get_metric_history(mlflow_run, key)
        wanted = {step: values[key] for step, values in expected.items() if key in values}
        assert sorted(point.step for point in history) == sorted(wanted)


def artifacts(client: Any, run_id: str, folder: str | None = None) -> list[str]:
    return [found.path for found in client.list_artifacts(run_id, folder)]


def test_database_is_created_atomically(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / ".mlflow.db.new").write_bytes(b"what a kill left")
    mlflow_client.ensure_database(store, "sqlite:///elsewhere.db")
    assert not (tmp_path / "mlflow.db").exists()
    mlflow_client.ensure_database(store, mlflow_client.tracking_uri(store))
    mlflow_client.ensure_database(store, mlflow_client.tracking_uri(store))
    default = connect(mlflow_client.tracking_uri(store)).get_experiment("0")
    assert default.artifact_location == f"{(tmp_path / 'mlartifacts').as_uri()}/0"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_pipeline_run_has_one_nested_run_per_stage(mirrored: Run) -> None:
    client = connect(mlflow_client.tracking_uri(mirrored.store))
    runs = runs_of(client, mirrored)
    assert set(runs) == {"", *NAMES}
    parent = runs.pop("")
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == mirrored.id
    assert parent.data.metrics["gpt.loss"] == pytest.approx(3.2)
    assert artifacts(client, parent.info.run_id) == ["report.html"]
    for name, run in runs.items():
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert "manifest.json" in artifacts(client, run.info.run_id)
        artifact = mirrored.store.find(sample_run.STAGES[name]["uses"], sample_run.print_of(name))
        assert artifact and run.data.tags["headwater.digest"] == artifact.digest


def test_resumed_stage_uses_the_same_run_without_duplicate_points(mirrored: Run) -> None:
    assert_exact(connect(mlflow_client.tracking_uri(mirrored.store)), mirrored)


def test_parameters_inputs_plots_tables_and_the_model(mirrored: Run, tmp_path: Path) -> None:
    client = connect(mlflow_client.tracking_uri(mirrored.store))
    runs = runs_of(client, mirrored)
    gpt, clean = runs["gpt"], runs["clean"]
    assert gpt.data.params["train.lr"] == "0.001"
    assert gpt.data.params["workers.num"] == "2"
    tokens = mirrored.store.find("tokenize.pack", sample_run.print_of("tokens"))
    assert tokens
    inputs = {i.dataset.name: i.dataset.digest for i in gpt.inputs.dataset_inputs}
    assert inputs == {f"tokenize.pack/{tokens.fingerprint}": tokens.digest[:36]}
    assert [i.dataset.name for i in clean.inputs.dataset_inputs] == ["python:docs"]
    assert set(artifacts(client, gpt.info.run_id, "plots")) == {
        "plots/loss.svg",
        "plots/learning-rate.svg",
        "plots/gradient-norm.svg",
    }
    assert artifacts(client, clean.info.run_id, "tables") == ["tables/sources.json"]
    assert '"tables/sources.json", "type": "table"' in clean.data.tags["mlflow.loggedArtifacts"]
    table = client.download_artifacts(clean.info.run_id, "tables/sources.json", str(tmp_path))
    assert json.loads(Path(table).read_text())["data"][0] == ["stdlib", 9120, 8123456]
    models = client.search_logged_models([gpt.info.experiment_id])
    assert len(models) == 1
    assert str(models[0].status) == "READY"
    assert models[0].source_run_id == gpt.info.run_id
    assert {m.key: m.value for m in models[0].metrics} == {"final/loss": pytest.approx(3.2)}
    assert gpt.outputs.model_outputs[0].model_id == models[0].model_id


def test_sending_again_makes_no_duplicates(
    mirrored: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = mlflow_client.tracking_uri(mirrored.store)
    assert mirror.main("once", str(mirrored.store.root), mirrored.id) == 0
    (mirrored.folder / "mlflow.json").unlink()  # all that is known of what was sent
    synchronizer = RunSynchronizer(mirrored, uri)
    assert synchronizer.try_sync(), synchronizer.cursor["problem"]
    client = connect(uri)
    assert_exact(client, mirrored)
    assert len(client.search_logged_models([synchronizer.cursor["experiment"]])) == 1
    assert unsynced_reason(mirrored) == ""


def test_child_follows_until_its_input_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirrored: Run
) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    with os.fdopen(reader) as ended:
        monkeypatch.setattr(sys, "stdin", ended)
        assert mirror.main("follow", str(mirrored.store.root), mirrored.id) == 0


def test_failed_stage_and_cached_stages(mirrored: Run) -> None:
    store, uri = mirrored.store, mlflow_client.tracking_uri(mirrored.store)
    run = Run(store, "20261121-0300-warm-otter")
    run.folder.mkdir()
    (run.folder / "run.yaml").write_text("{name: quickstart, stages: {sft: {uses: sft}}}")
    planned = [sample_run._planned(name) for name in ("gpt", "sft", "reward")]
    (run.folder / "plan.json").write_text(json.dumps({"stages": planned}))
    assert RunSynchronizer(run, uri).try_sync()  # nothing happened yet
    run.append("run.created", pipeline="quickstart", store=str(store.root), origin=None)
    run.append("plan", stages=planned)
    run.append("stage.cached", stage="gpt", fingerprint=sample_run.print_of("gpt"))
    context = sample_run.begin(run, "sft")
    sample_run.write_series(context, "sft", 3)
    context.metrics(3, {"loss": float("nan"), "top 5%": 0.5})
    with (context.observed / "metrics.jsonl").open("a") as series:
        series.write('{"step": 4, "lo')  # a kill in the middle of a line
    run.append("stage.failed", stage="sft", error="loss is nan", **{"class": "error"})
    run.append("run.finished", state="failed")
    synchronizer = RunSynchronizer(run, uri)
    assert synchronizer.try_sync(), synchronizer.cursor["problem"]
    client = connect(uri)
    runs = runs_of(client, run)
    assert {name: found.info.status for name, found in runs.items()} == {
        "": "FAILED",
        "gpt": "FINISHED",
        "sft": "FAILED",
    }
    assert runs["gpt"].data.tags["headwater.cached"] == "true"
    assert not client.get_metric_history(runs["gpt"].info.run_id, "lr")  # the other run has them
    assert runs["sft"].data.tags["headwater.error"] == "loss is nan"
    assert len(client.get_metric_history(runs["sft"].info.run_id, "loss")) == 3  # not NaN
    assert runs["sft"].data.metrics["top 5_"] == 0.5
    run.open()
    run.append("promoted", model="talker", version=1, alias="champion", stage="gpt")
    run.append("stage.started", stage="sft", attempt=2, fingerprint=sample_run.print_of("sft"))
    assert synchronizer.try_sync(), synchronizer.cursor["problem"]
    assert runs_of(client, run)["sft"].info.status == "RUNNING"
    run.close()
    tags = runs_of(client, run)[""].data.tags
    assert tags["headwater.promoted.talker"] == "v1 champion"


def test_pass_fails_while_another_process_writes(
    mirrored: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    synchronizer = RunSynchronizer(mirrored, mlflow_client.tracking_uri(mirrored.store))
    with mlflow_client.writer_lock(mirrored.store, 0):
        assert not synchronizer.try_sync(timeout=0)
        assert not synchronizer.try_sync(timeout=0)
    assert read_cursor(mirrored)["problem"] == "another process is writing to MLflow"
    assert capsys.readouterr().err.count("Traceback") == 1  # said once
    assert synchronizer.try_sync()
    assert read_cursor(mirrored)["problem"] == ""


def test_kill_between_sending_and_saving_the_cursor(tmp_path: Path) -> None:
    run = sample_run.make(tmp_path / "store", names=(), finish=False)
    (run.folder / "plan.json").write_text(json.dumps({"stages": [sample_run._planned("gpt")]}))
    run.append("plan", stages=[sample_run._planned("gpt")])
    context = sample_run.begin(run, "gpt")
    sample_run.write_series(context, "gpt", 30, stop=20)
    uri = mlflow_client.tracking_uri(run.store)
    assert RunSynchronizer(run, uri).try_sync()
    (run.folder / "mlflow.json").unlink()
    context.truncate_series(9)
    time.sleep(0.002)  # the points that are made again have another time
    sample_run.write_series(context, "gpt", 30, start=10)
    context.panel({"type": "bars", "title": "empty", "values": {}, "unit": ""})
    synchronizer = RunSynchronizer(run, uri)
    assert synchronizer.try_sync()
    context.truncate_series(24)
    assert synchronizer.try_sync()
    sample_run.write_series(context, "gpt", 30, start=25)
    (context.out / "data.bin").write_bytes(b"a model without figures")
    sample_run.commit(run, "gpt")
    assert synchronizer.try_sync()
    assert_exact(connect(uri), run, steps=30)


def test_points_after_a_rewind_are_the_newest(tmp_path: Path) -> None:
    """As after a NaN: the report shows the new course, so MLflow must have it too."""
    run = sample_run.make(tmp_path / "store", names=(), finish=False)
    (run.folder / "plan.json").write_text(json.dumps({"stages": [sample_run._planned("gpt")]}))
    run.append("plan", stages=[sample_run._planned("gpt")])
    context = sample_run.begin(run, "gpt")
    synchronizer = RunSynchronizer(run, mlflow_client.tracking_uri(run.store))

    def write(steps: range, offset: float) -> None:
        for step in steps:
            context.metrics(step, {"loss": step + offset, "bad": float("nan")})

    def history(key: str) -> list[tuple[int, float]]:
        found = client.get_metric_history(runs_of(client, run)["gpt"].info.run_id, key)
        found.sort(key=lambda point: point.timestamp)
        return [(point.step, point.value) for point in found]

    write(range(20), 0.0)
    assert synchronizer.try_sync()
    context.truncate_series(9)
    time.sleep(0.002)
    write(range(10, 15), 0.5)
    assert synchronizer.try_sync()
    write(range(15, 25), 0.5)
    assert synchronizer.try_sync()
    client = connect(mlflow_client.tracking_uri(run.store))
    course = [(step, step + (0.5 if step > 9 else 0.0)) for step in range(25)]
    assert sorted(dict(history("loss")).items()) == course
    assert len(history("loss")) == 20 + 15
    assert RunSynchronizer(run, synchronizer.uri).try_sync()
    assert len(history("loss")) == 20 + 15
    assert history("bad") == []  # NaN has no value


def test_odd_values_are_sent_as_numbers_or_not_at_all(mirrored: Run) -> None:
    odd = [math.nan, 1.7e308, math.inf, 5e-324, None, -0.0, 10**400, -2.5]
    run = sample_run.make(mirrored.store.root, run_id="odd-otter", names=(), finish=False)
    run.append("plan", stages=[sample_run._planned("evaluate")])
    context = sample_run.begin(run, "evaluate")
    for step, value in enumerate(odd):
        context.metrics(step, {"loss": value})
    context.result(**{f"odd_{number}": value for number, value in enumerate(odd)})
    context.panel(panels.table("Odd", ["value"], [[value] for value in odd]))
    (context.out / "data.bin").write_bytes(b"odd")
    sample_run.commit(run, "evaluate")
    synchronizer = RunSynchronizer(run, mlflow_client.tracking_uri(run.store))
    assert synchronizer.try_sync(), synchronizer.cursor["problem"]
    client = connect(synchronizer.uri)
    sent = runs_of(client, run)["evaluate"]
    history = client.get_metric_history(sent.info.run_id, "loss")
    assert {p.step: p.value for p in history} == {1: 1.7e308, 3: 5e-324, 5: 0.0, 7: -2.5}
    finals = {key: value for key, value in sent.data.metrics.items() if key.startswith("final")}
    assert finals == {
        f"final/odd_{n}": v for n, v in ((1, 1.7e308), (3, 5e-324), (5, 0), (7, -2.5))
    }


def test_secrets_are_never_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIVER_TOKEN", "hunter2-hunter2")
    run = sample_run.make(tmp_path / "store", names=("clean",))
    resolved = (run.folder / "run.yaml").read_text()
    resolved += (
        "    token: ${env:RIVER_TOKEN}\n    leaked: hunter2-hunter2\n    site: http://a:b@c\n"
    )
    (run.folder / "run.yaml").write_text(resolved)
    (run.folder / "report.html").write_text("<p>hunter2-hunter2</p>")
    run = Run(run.store, run.id)
    uri = mlflow_client.tracking_uri(run.store)
    synchronizer = RunSynchronizer(run, uri)
    assert synchronizer.try_sync(), synchronizer.cursor["problem"]
    params = runs_of(connect(uri), run)["clean"].data.params
    assert params["token"] == params["leaked"] == "${env:RIVER_TOKEN}"
    assert params["site"] == "http://***@c"
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file() and path.name != "run.yaml" and path != run.folder / "report.html":
            assert b"hunter2" not in path.read_bytes(), path


def test_replaced_database_is_filled_again(mirrored: Run, tmp_path: Path) -> None:
    uri = mlflow_client.tracking_uri(mirrored.store)
    synchronizer = RunSynchronizer(mirrored, uri)
    synchronizer._save_cursor(experiment="99", parent="0" * 32, stages={}, status="RUNNING")
    assert not synchronizer.try_sync()
    assert "No Experiment with id=99" in synchronizer.cursor["problem"]
    client = connect(uri)
    client.delete_experiment(client.get_experiment_by_name("quickstart").experiment_id)
    assert synchronizer.try_sync(), synchronizer.cursor["problem"]
    assert_exact(client, mirrored)


# --- the registry ------------------------------------------------------------------------------


@pytest.fixture
def models(mirrored: Run) -> Registry:
    return Registry(mirrored.store)


def artifact(run: Run, name: str) -> Artifact:
    uses = sample_run.STAGES[name]["uses"]
    found = run.store.find(uses, sample_run.print_of(name))
    if found is None:
        found = sample_run.publish(
            sample_run.make(run.store.root, run_id=f"other-{name}", names=()), name
        )
    return found


def test_promote_and_roll_back(mirrored: Run, models: Registry) -> None:
    client = connect(models.uri)
    gpt, sft = artifact(mirrored, "gpt"), artifact(mirrored, "sft")
    gates = ["evaluate.perplexity<20", "reward.accuracy>=champion+0.01"]
    first = models.promote(gpt, "talker", require=gates, stage_metrics=FIGURES, user="ada")
    assert (first["from"], first["to"]) == (None, 1)
    assert models.promote(gpt, "talker", require=gates, stage_metrics=FIGURES) == first
    version = client.get_model_version_by_alias("talker", "champion")
    assert version.source == gpt.path.as_uri()
    assert version.tags["fingerprint"] == gpt.fingerprint
    assert version.tags["metric.evaluate.perplexity"] == "18.4"
    assert version.run_id == runs_of(client, mirrored)["gpt"].info.run_id
    with pytest.raises(GateRefused):
        models.promote(sft, "talker", require=gates, stage_metrics=FIGURES)
    assert models.resolve("talker").digest == gpt.digest
    better = {**FIGURES, "reward": {"accuracy": 0.82}}
    second = models.promote(sft, "talker", require=gates, stage_metrics=better)
    assert (second["from"], second["to"], second["gates"][1]["champion"]) == (1, 2, 0.81)
    assert len(client.search_model_versions("name='talker'")) == 2
    back = models.rollback("talker", user="bob")
    assert (back["action"], back["from"], back["to"], back["user"]) == ("rollback", 2, 1, "bob")
    assert str(client.get_model_version_by_alias("talker", "champion").version) == "1"
    assert models.resolve("talker").digest == gpt.digest
    with pytest.raises(NotFound, match="is the first of"):
        models.rollback("talker")
    assert models.rollback("talker", to="v2")["to"] == 2
    assert [r["to"] for r in models.history("talker")] == [1, 2, 1, 2]


def test_next_call_completes_an_interrupted_promotion(mirrored: Run, models: Registry) -> None:
    client = connect(models.uri)
    gpt, sft = artifact(mirrored, "gpt"), artifact(mirrored, "sft")
    models.promote(gpt, "walker")
    models.promote(gpt, "walker", "spare")
    log = mirrored.store.root / "registry" / "walker" / "promotions.jsonl"
    record = {**models.promote(sft, "walker", dry_run=True), "to": 2}
    with log.open("a") as lines:
        lines.write(json.dumps(record) + "\n")  # killed between the log and the alias
    client.delete_registered_model_alias("walker", "spare")
    assert models.promote(sft, "walker") == record
    aliases = client.get_registered_model("walker").aliases
    assert {name: str(version) for name, version in aliases.items()} == {
        "champion": "2",
        "spare": "1",
    }
    client.delete_model_version("walker", "1")  # MLflow drops its aliases without a word
    assert models.rollback("walker")["to"] == 3
    assert str(client.get_model_version_by_alias("walker", "champion").version) == "3"
    assert client.get_model_version("walker", "3").source == gpt.path.as_uri()


def test_version_numbers_survive_the_deletion_of_a_model(mirrored: Run, models: Registry) -> None:
    first, second, third = (artifact(mirrored, name) for name in ("gpt", "sft", "reward"))
    models.promote(first, "runner")
    models.promote(second, "runner")
    client = connect(models.uri)
    client.delete_registered_model("runner")
    assert models.promote(third, "runner")["to"] == 3
    found = client.search_model_versions("name='runner'")
    assert {int(version.version): version.tags["digest"] for version in found} == {
        2: second.digest,
        3: third.digest,
    }
    assert [record["to"] for record in models.history("runner")] == [1, 2, 3]
    assert models.rollback("runner")["to"] == 2
    assert models.rollback("runner")["to"] == 4  # version 1 is lost, its number stays used
    assert client.get_model_version("runner", "4").tags["digest"] == first.digest
    assert str(client.get_model_version_by_alias("runner", "champion").version) == "4"


def test_a_model_whose_files_are_gone_is_not_registered_again(
    mirrored: Run, models: Registry
) -> None:
    first, second = (artifact(mirrored, name) for name in ("gpt", "sft"))
    models.promote(first, "hurdler")
    client = connect(models.uri)
    client.delete_registered_model("hurdler")
    aside = first.path.rename(first.path.with_name("aside"))
    try:
        assert models.promote(second, "hurdler")["to"] == 2
    finally:
        aside.rename(first.path)
    (version,) = client.search_model_versions("name='hurdler'")
    assert version.tags["digest"] == second.digest


def test_the_number_of_a_deleted_version_is_not_used_again(mirrored: Run, models: Registry) -> None:
    first, second, third = (artifact(mirrored, name) for name in ("gpt", "sft", "reward"))
    models.promote(first, "jumper")
    models.promote(second, "jumper", "spare")
    client = connect(models.uri)
    client.delete_model_version("jumper", "2")
    assert models.promote(third, "jumper")["to"] == 4
    history = models.history("jumper")
    logged = [(record["alias"], record["from"], record["to"]) for record in history]
    assert logged[:2] == [("champion", None, 1), ("spare", None, 2)]
    assert logged[2:] == [("spare", 2, 3), ("champion", 1, 4)]
    assert client.get_model_version_by_alias("jumper", "spare").tags["digest"] == second.digest
    with pytest.raises(NotFound, match="is the first of jumper@spare"):
        models.rollback("jumper", "spare")
    assert models.rollback("jumper")["to"] == 1


def test_unmoved_alias_is_an_error(mirrored: Run, models: Registry) -> None:
    from mlflow import MlflowClient

    class Forgetful(MlflowClient):  # type: ignore[misc]
        def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
            """Ignore the request, like a broken server."""

    gpt, sft = artifact(mirrored, "gpt"), artifact(mirrored, "sft")
    models.promote(gpt, "stuck")
    models.promote(sft, "stuck", "spare")
    with pytest.raises(Failure, match="version 1 for stuck@champion, expected 2"):
        models._move_alias(Forgetful(models.uri), "stuck", "champion", "2")
    sft.path.rename(sft.path.with_name("aside"))  # another alias's artifact is gone: left alone
    try:
        assert models.promote(gpt, "stuck")["to"] == 1
    finally:
        sft.path.with_name("aside").rename(sft.path)


def test_rollback_to_a_corrupt_version_changes_nothing(mirrored: Run, models: Registry) -> None:
    gpt, reward = artifact(mirrored, "gpt"), artifact(mirrored, "reward")
    models.promote(reward, "critic")
    models.promote(gpt, "critic")
    data = (reward.path / "data.bin").read_bytes()
    (reward.path / "data.bin").write_bytes(data[:-1] + b"\0")
    with pytest.raises(CorruptArtifact):
        models.rollback("critic")
    assert models.resolve("critic").digest == gpt.digest
    (reward.path / "data.bin").write_bytes(data)
    (reward.path / "data.bin").unlink()
    with pytest.raises(CorruptArtifact):
        models.rollback("critic")
    (reward.path / "data.bin").write_bytes(data)


def test_promotion_fails_before_the_log_while_mlflow_is_down(mirrored: Run) -> None:
    dead = Registry(mirrored.store, f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(Failure, match="MLflow"):
        dead.promote(artifact(mirrored, "gpt"), "nobody")
    assert time.monotonic() - started < 60
    assert not (mirrored.store.root / "registry" / "nobody").exists()


# --- a server ----------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tracking server that does not see the store."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    command = mlflow_client.ui_command(Store(folder), f"sqlite:///{folder}/server.db")
    command[command.index("--default-artifact-root") :] = [
        *("--artifacts-destination", str(folder / "files")),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None and time.monotonic() < deadline, folder / "log"
            time.sleep(0.1)
        address = f"http://127.0.0.1:{port}"
        connect(address, timeout=120).get_experiment_by_name("quickstart")  # it imports as it goes
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def test_server_receives_the_run_and_the_weights(tmp_path: Path, server: str) -> None:
    run = sample_run.make(tmp_path / "store", names=("gpt",), steps=30)
    synchronizer = RunSynchronizer(run, server)
    for _ in range(10):  # a server on a busy machine misses a time-out now and then
        if synchronizer.try_sync():
            break
    client = connect(server, timeout=120)
    assert_exact(client, run, steps=30)
    models = Registry(run.store, server)
    gpt, sft = artifact(run, "gpt"), artifact(run, "sft")
    assert models.promote(gpt, "remote")["to"] == 1
    assert models.promote(sft, "remote")["from"] == 1  # its run was never mirrored
    for version in client.search_model_versions("name='remote'"):
        assert version.source == f"runs:/{version.run_id}/model"
        assert "model/manifest.json" in artifacts(client, version.run_id, "model")
    assert str(client.get_model_version_by_alias("remote", "champion").version) == "2"
    assert models.rollback("remote")["to"] == 1
