"""Names, checks, gates and the log; tests that need MLflow are in integration/test_mlflow.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sample_run

from launch.tracking import model_registry
from launch.tracking.model_registry import Registry
from pipeline.errors import (
    CorruptArtifact,
    Failure,
    GateRefused,
    InputError,
    NotFound,
    UserError,
)
from pipeline.storage.artifact import Artifact
from pipeline.storage.store import Store

FIGURES = {"evaluate": {"perplexity": 18.4}, "reward": {"accuracy": 0.81}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return sample_run.make(tmp_path, names=("clean", "gpt", "sft")).store


@pytest.fixture
def model(store: Store) -> Artifact:
    found = store.find("pretrain", sample_run.print_of("gpt"))
    assert found
    return found


def logged(store: Store, artifact: Artifact, to: int, **facts: Any) -> dict[str, Any]:
    """Append a promotion's record to the log."""
    record = {
        "time": f"2026-11-21T0{to}:00:00Z",
        "user": "ada",
        "action": "promote",
        "model": "talker",
        "alias": "champion",
        "uses": artifact.uses,
        "kind": artifact.kind,
        "fingerprint": artifact.fingerprint,
        "digest": artifact.digest,
        "path": str(artifact.path.relative_to(store.root)),
        "from": None,
        "to": to,
        "metrics": {"reward.accuracy": 0.8},
        "gates": [],
        **facts,
    }
    log = store.root / "registry" / record["model"] / "promotions.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as lines:
        lines.write(json.dumps(record) + "\n")
    return record


def test_dry_run_changes_nothing(store: Store, model: Artifact) -> None:
    tried: list[Path] = []
    record = Registry(store).promote(
        model,
        "talker",
        require=["evaluate.perplexity<20", "reward.accuracy>=champion"],
        stage_metrics=FIGURES,
        dry_run=True,
        smoke_test=tried.append,
        user="ada",
    )
    assert tried == [model.path]
    assert [line["passed"] for line in record["gates"]] == [True, True]
    assert record["to"] is None and record["from"] is None
    assert (record["user"], record["stage"], record["digest"]) == ("ada", "gpt", model.digest)
    assert record["metrics"] == {"evaluate.perplexity": 18.4, "reward.accuracy": 0.81}
    assert not (store.root / "registry").exists()
    assert not (store.root / "mlflow.db").exists()


@pytest.mark.parametrize(
    "alias", ["latest", "Latest", "v1", "V12", "", "a b", "a/b", "-a", "1", "é"]
)
def test_invalid_aliases(store: Store, model: Artifact, alias: str) -> None:
    with pytest.raises(UserError, match="alias"):
        Registry(store).promote(model, "talker", alias, dry_run=True)
    with pytest.raises(UserError, match="alias"):
        Registry(store).rollback("talker", alias)


@pytest.mark.parametrize("name", ["", "../x", "A", "a/b", "a b"])
def test_model_names_are_safe_in_paths(store: Store, model: Artifact, name: str) -> None:
    with pytest.raises(UserError, match="is not a valid name for a model"):
        Registry(store).promote(model, name, dry_run=True)
    with pytest.raises(UserError, match="is not a valid name for a model"):
        Registry(store).history(name)


def test_only_models_are_promoted(store: Store) -> None:
    documents = store.find("clean", sample_run.print_of("clean"))
    assert documents
    with pytest.raises(UserError, match="holds Documents, not a model"):
        Registry(store).promote(documents, "talker")


def test_unknown_metric(store: Store, model: Artifact) -> None:
    with pytest.raises(UserError, match="the run has no stage 'a'"):
        Registry(store).promote(model, "talker", require=["a.b<3"], stage_metrics=FIGURES)


def test_corrupt_artifact_is_found_first(store: Store, model: Artifact) -> None:
    data = bytearray((model.path / "data.bin").read_bytes())
    data[77] ^= 1
    (model.path / "data.bin").write_bytes(data)
    with pytest.raises(CorruptArtifact, match=r"data\.bin"):
        Registry(store).promote(model, "talker", smoke_test=lambda _: pytest.fail("not reached"))


def test_failed_smoke_test_refuses_the_model(store: Store, model: Artifact) -> None:
    def breaks(path: Path) -> None:
        raise OSError("no config.json")

    def objects(path: Path) -> None:
        raise InputError("as it is")

    with pytest.raises(GateRefused, match=r"failed its smoke test: no config\.json"):
        Registry(store).promote(model, "talker", smoke_test=breaks)
    with pytest.raises(InputError, match="as it is"):
        Registry(store).promote(model, "talker", smoke_test=objects)


def test_gate_against_the_champion(store: Store, model: Artifact) -> None:
    other = store.find("sft", sample_run.print_of("sft"))
    assert other
    logged(store, other, 1)
    arguments: dict[str, Any] = {"stage_metrics": FIGURES, "dry_run": True}
    record = Registry(store).promote(
        model, "talker", require=["reward.accuracy>=champion+0.01"], **arguments
    )
    assert (record["from"], record["gates"][0]["champion"]) == (1, 0.8)
    with pytest.raises(GateRefused) as caught:
        Registry(store).promote(
            model, "talker", require=["reward.accuracy>=champion+0.02"], **arguments
        )
    assert caught.value.where == "talker@champion"


def test_repeated_promotion_is_compared_with_the_previous_champion(
    store: Store, model: Artifact
) -> None:
    other = store.find("sft", sample_run.print_of("sft"))
    assert other
    gate = ["reward.accuracy>champion"]
    logged(store, other, 1)
    record = logged(store, model, 2, metrics={"reward.accuracy": 0.81})
    again = Registry(store).promote(
        model, "talker", require=gate, stage_metrics=FIGURES, dry_run=True
    )
    assert again == record


def test_reading_needs_only_the_log(store: Store, model: Artifact) -> None:
    other = store.find("sft", sample_run.print_of("sft"))
    assert other
    first, second = logged(store, other, 1), logged(store, model, 2)
    logged(store, other, 1, alias="candidate")
    logged(store, other, 1, model="another")
    script = (
        "import sys, json\n"
        "from pipeline.storage.store import Store\n"
        "from launch.tracking.model_registry import Registry\n"
        "r = Registry(Store(sys.argv[1]))\n"
        "print(json.dumps([r.models(), r.history('talker'), str(r.resolve('talker').path)]))\n"
        "assert not {'mlflow', 'torch', 'ray'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(store.root)], capture_output=True, text=True, check=True
    )
    models, history, path = json.loads(done.stdout)
    assert [entry["model"] for entry in models] == ["another", "talker"]
    assert models[1]["versions"] == [1, 2]
    assert models[1]["aliases"] == {"candidate": 1, "champion": 2}
    assert history[:2] == [first, second]
    assert path == str(model.path)
    assert Registry(store).models() == models


def test_missing_models_aliases_and_versions(store: Store, model: Artifact) -> None:
    models = Registry(store)
    with pytest.raises(NotFound, match="no model 'talker'"):
        models.history("talker")
    with pytest.raises(NotFound):
        models.rollback("talker")
    logged(store, model, 1)
    with pytest.raises(NotFound) as caught:
        models.history("walker")
    assert "talker" in caught.value.remedy
    with pytest.raises(NotFound) as caught:
        models.resolve("talker", "champignon")
    assert "champion" in caught.value.remedy
    with pytest.raises(NotFound, match="no alias"):
        models.rollback("talker", "candidate")
    with pytest.raises(NotFound, match="version 1 is the first"):
        models.rollback("talker")
    with pytest.raises(NotFound, match="no version v7"):
        models.rollback("talker", to="v7")


def test_resolve_checks_the_digest(store: Store, model: Artifact) -> None:
    logged(store, model, 1, digest="0" * 64)
    with pytest.raises(CorruptArtifact, match="differs from what was promoted"):
        Registry(store).resolve("talker")


def test_torn_and_corrupt_logs(store: Store, model: Artifact) -> None:
    logged(store, model, 1)
    log = store.root / "registry" / "talker" / "promotions.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + whole[:40])
    assert len(Registry(store).history("talker")) == 1
    log.write_bytes(whole[:40] + b"\n" + whole)
    with pytest.raises(Failure, match="corrupt"):
        Registry(store).history("talker")


def test_rollbacks_step_by_step() -> None:
    def record(action: str, name: str, alias: str = "champion") -> dict[str, Any]:
        return {"action": action, "digest": name, "alias": alias}

    def before(*records: dict[str, Any]) -> str | None:
        found = model_registry._previous_holder(records, "champion")
        return found and found["digest"]

    a, b, c = (record("promote", name) for name in "abc")
    other = record("promote", "x", "candidate")
    assert before(a) is None
    assert before(a, b, other, c) == "b"
    assert before(a, b, c, record("rollback", "b")) == "a"
    assert before(a, b, c, record("rollback", "b"), record("rollback", "a")) is None
    assert before(a, b, c, record("rollback", "a"), c) == "a"
    assert before(a, b, record("rollback", "x")) == "b"


def test_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_error() -> str:
        raise KeyError("uid")

    monkeypatch.setattr(model_registry.getpass, "getuser", raise_error)
    assert model_registry._user_name().isdigit()
