"""What a run would do, and why, against a real store."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orchard  # noqa: F401  registers its stages
import pytest
from faulty_disk import out_of_descriptors

from launch.garbage_collection import collect_garbage
from pipeline.context import Context
from pipeline.errors import Failure, NotFound, SpecError
from pipeline.execution.plan import Plan, PlannedStage, make_plan
from pipeline.spec.pipeline_spec import ModelRef, Spec
from pipeline.spec.spec_checker import spec_from_resolved
from pipeline.stage import Stage
from pipeline.storage.artifact import Artifact
from pipeline.storage.store import PublishRequest, Store

STAGES: dict[str, dict[str, Any]] = {
    "trees": {"uses": "orchard.plant", "rows": 20, "organic": True},
    "juice": {"uses": "orchard.press", "trees": "${trees}"},
    "taste": {"uses": "orchard.taste", "juices": ["${juice}"]},
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def spec(*overrides: str, **more: dict[str, Any]) -> Spec:
    data = {"name": "x", "stages": {**STAGES, **more}}
    return spec_from_resolved(json.loads(json.dumps(data)), overrides)


def publish(store: Store, stage: PlannedStage, name: str = "", bytes_: str = "") -> Artifact:
    """Carry out one stage of a plan as far as the store is concerned."""
    folder = store.work(stage.uses, stage.fingerprint)
    context = Context(folder, folder / "log", folder / "cancel", store.root / "cache")
    (context.out / "data.txt").write_text(f"{name or stage.name} {bytes_}")
    inputs = {
        edge: [a for source in sources if (a := store.find(source["uses"], source["fingerprint"]))]
        for edge, sources in stage.inputs.items()
    }
    return store.publish(
        PublishRequest(
            stage.uses,
            stage.fingerprint,
            kind=stage.kind,
            version=1,
            payload=stage.payload,
            inputs=inputs,
            run={"id": "20260101-0000-able-bear", "stage": name or stage.name, "attempt": 1},
            seconds=1.0,
            code={"commit": "c0ffee1" + "0" * 33, "source_hash": stage.source_hash},
        )
    )


def publish_all(store: Store, wanted: Spec) -> dict[str, Artifact]:
    return {stage.name: publish(store, stage) for stage in make_plan(wanted, store).stages}


def sentences(plan: Plan) -> dict[str, str]:
    return {stage.name: str(stage) for stage in plan.stages}


def stage_of(plan: Plan, name: str) -> PlannedStage:
    return next(stage for stage in plan.stages if stage.name == name)


# --- actions and reasons -----------------------------------------------------------------------


def test_all_is_to_be_made_in_an_empty_store(store: Store) -> None:
    plan = make_plan(spec(), store)
    assert sentences(plan) == dict.fromkeys(STAGES, "RUN because no artifact yet")
    assert not store.root.exists()
    juice = stage_of(plan, "juice")
    trees = stage_of(plan, "trees")
    assert (juice.uses, juice.kind, juice.needs) == ("orchard.press", "Juice", ["trees"])
    source = {"stage": "trees", "uses": "orchard.plant", "fingerprint": trees.fingerprint}
    assert juice.inputs == {"trees": [source]}
    assert juice.payload["inputs"] == {"trees": [trees.fingerprint]}
    assert [stage.estimate for stage in plan.stages] == [{"seconds": 20.0}, {}, {"seconds": 0.5}]
    assert trees.source_hash == juice.source_hash == "", "code is not compared"


def test_what_was_made_is_cached(store: Store) -> None:
    publish_all(store, spec())
    plan = make_plan(spec("trees.workers.num=4", "trees.tools=3"), store)
    assert sentences(plan) == dict.fromkeys(STAGES, "cached")
    assert stage_of(plan, "trees").reason == "produced by 20260101-0000-able-bear"
    assert stage_of(plan, "trees").warnings == []


def test_a_change_is_named_field_by_field_and_spreads(store: Store) -> None:
    publish_all(store, spec("trees.water=3e-4"))
    plan = make_plan(spec("trees.water=2e-4"), store)
    assert sentences(plan) == {
        "trees": "RUN because water 3e-4 -> 2e-4",
        "juice": "RUN because upstream trees changed",
        "taste": "RUN because upstream juice changed",
    }


def test_many_changes_are_counted(store: Store) -> None:
    publish_all(store, spec())
    changed = spec("trees.water=2", "trees.label=a", "trees.pairs=4", "trees.seed=8", "name=y")
    reason = "seed 0 -> 8, water 1.0 -> 2.0, label null -> a and 1 more"
    assert stage_of(make_plan(changed, store), "trees").reason == reason


def test_the_nearest_artifact_explains(store: Store) -> None:
    """Under the same name first, then in the fewest fields."""
    far = make_plan(spec("trees.water=2", "trees.rows=30"), store)
    near = make_plan(spec("trees.water=2"), store)
    other = make_plan(spec("trees.label=z"), store)
    publish(store, stage_of(far, "trees"))
    publish(store, stage_of(near, "trees"))
    publish(store, stage_of(other, "trees"), name="elsewhere")
    wanted = spec("trees.water=3")
    assert stage_of(make_plan(wanted, store), "trees").reason == "water 2.0 -> 3.0"


def test_a_stage_resumes_from_where_it_says(store: Store) -> None:
    plan = make_plan(spec(), store)
    folder = store.work("orchard.plant", stage_of(plan, "trees").fingerprint)
    context = Context(folder, folder / "log", folder / "cancel", store.root / "cache")
    assert stage_of(make_plan(spec(), store), "trees").action == "run"
    context.resume_point(1200, 5000)
    assert str(stage_of(make_plan(spec(), store), "trees")) == "RESUME at step 1200/5000"
    context.progress(3, 40, "shards")
    context.resume_point(3, 40)
    assert str(stage_of(make_plan(spec(), store), "trees")) == "RESUME at shard 3/40"
    (context.observed / "resume.json").write_text('{"step": 7}')
    assert str(stage_of(make_plan(spec(), store), "trees")) == "RESUME at shard 7"


@pytest.mark.parametrize("torn", ['{"step": 12', "[]", "{}"])
def test_a_torn_resume_point_is_none(store: Store, torn: str) -> None:
    fp = stage_of(make_plan(spec(), store), "trees").fingerprint
    observed = store.work("orchard.plant", fp) / "observed"
    observed.mkdir(parents=True)
    (observed / "resume.json").write_text(torn)
    assert stage_of(make_plan(spec(), store), "trees").reason == "no artifact yet"


def test_a_damaged_artifact_is_made_again(store: Store) -> None:
    made = publish_all(store, spec())
    (made["juice"].path / "data.txt").unlink()
    found = stage_of(make_plan(spec(), store), "juice")
    assert found.action == "run"
    assert found.reason.startswith("artifact is corrupt: ")
    assert "data.txt" in found.reason
    assert made["juice"].path.exists()
    assert sentences(make_plan(spec(), store))["taste"] == "cached"


def test_an_unreadable_store_is_a_failure(store: Store) -> None:
    publish_all(store, spec())
    wanted = spec()
    make_plan(wanted, store)  # what is imported late is there
    with out_of_descriptors(), pytest.raises(Failure, match="cannot read"):
        make_plan(wanted, store)
    assert set(sentences(make_plan(wanted, store)).values()) == {"cached"}


def test_what_was_damaged_before_the_garbage_was_collected_is_forgotten(store: Store) -> None:
    made = publish_all(store, spec())
    (made["juice"].path / "data.txt").unlink()
    store.find_or_quarantine("orchard.press", made["juice"].fingerprint)
    assert "corrupt" in stage_of(make_plan(spec(), store), "juice").reason
    collect_garbage(store, dry=False)
    assert stage_of(make_plan(spec(), store), "juice").reason == "no artifact yet"


# --- produced again on demand -------------------------------------------------------------------


def test_rerun_makes_one_stage_again(store: Store) -> None:
    made = publish_all(store, spec())
    plan = make_plan(spec(), store, rerun=["juice"])
    expected = {"trees": "cached", "juice": "RUN because forced by --rerun", "taste": "cached"}
    assert sentences(plan) == expected
    assert [stage.rerun for stage in plan.stages] == [False, True, False]
    again = publish(store, stage_of(plan, "juice"), bytes_="other")
    assert again.path != made["juice"].path
    assert made["juice"].path.exists()
    after = make_plan(spec(), store)
    assert sentences(after) == dict.fromkeys(STAGES, "cached")
    warning = "juice was produced again since, with other bytes"
    assert stage_of(after, "taste").warnings == [warning]


def test_from_makes_a_stage_and_all_after_it_again(store: Store) -> None:
    publish_all(store, spec())
    plan = make_plan(spec(), store, from_="juice", rerun=["taste"])
    assert sentences(plan) == {
        "trees": "cached",
        "juice": "RUN because forced by --from juice",
        "taste": "RUN because forced by --rerun",
    }


def test_only_takes_one_stage_whose_inputs_are_there(store: Store) -> None:
    publish(store, stage_of(make_plan(spec(), store), "trees"))
    plan = make_plan(spec(), store, only="juice")
    expected = {"trees": "cached", "juice": "RUN because no artifact yet", "taste": "skip"}
    assert sentences(plan) == expected
    with pytest.raises(SpecError) as caught:
        make_plan(spec(), store, only="taste")
    assert str(caught.value) == (
        "run.yaml: taste: needs juice, which has no artifact "
        "(leave out --only, or run --only juice first)"
    )


@pytest.mark.parametrize("scope", [{"only": "juic"}, {"from_": "juic"}, {"rerun": ["juic"]}])
def test_a_stage_that_is_not_there(store: Store, scope: Any) -> None:
    with pytest.raises(NotFound) as caught:
        make_plan(spec(), store, **scope)
    assert caught.value.message == "the pipeline x has no stage 'juic'"
    assert caught.value.remedy == "did you mean 'juice'?"


# --- code --------------------------------------------------------------------------------------


def code_of(uses: str, now: str) -> Callable[[Stage], str]:
    """Hash the code of one stage to `now`, of the others to `a`."""
    return lambda stage: now if stage.uses == uses else "a"


def test_changed_code_warns_and_decides_only_on_demand(store: Store) -> None:
    for stage in make_plan(spec(), store, source_hash=code_of("orchard.press", "a")).stages:
        assert stage.source_hash == "", "there is nothing to compare"
        publish(store, replace(stage, source_hash="a"))
    edited = code_of("orchard.press", "b")
    plan = make_plan(spec(), store, source_hash=edited)
    assert set(sentences(plan).values()) == {"cached"}
    juice = stage_of(plan, "juice")
    assert juice.source_hash == "b"
    assert [warning.partition(" since ")[0] for warning in juice.warnings] == ["code changed"]
    assert stage_of(plan, "trees").warnings == []
    strict = make_plan(spec(), store, strict_code=True, source_hash=edited)
    assert str(stage_of(strict, "juice")) == f"RUN because {juice.warnings[0]}"
    assert [stage.name for stage in strict.stages if stage.rerun] == ["juice"]


@pytest.mark.parametrize(("before", "now"), [("a", ""), ("", "a"), ("", "")])
def test_unknown_code_is_not_compared(store: Store, before: str, now: str) -> None:
    stage = stage_of(make_plan(spec(), store), "trees")
    publish(store, replace(stage, source_hash=before))
    plan = make_plan(spec(), store, strict_code=True, source_hash=lambda stage: now)
    assert (stage_of(plan, "trees").action, stage_of(plan, "trees").warnings) == ("cached", [])


# --- what comes from outside the pipeline ------------------------------------------------------


def test_existing_artifacts_and_models_are_inputs(store: Store) -> None:
    trees = publish(store, stage_of(make_plan(spec(), store), "trees"))
    alone = {
        "juice": {
            "uses": "orchard.press",
            "trees": f"artifact:{trees.fingerprint[:8]}",
            "yeast": "model:wild@best",
        }
    }
    wanted = spec_from_resolved({"name": "x", "stages": alone})
    asked = []

    def resolve(ref: ModelRef) -> Artifact:
        asked.append(ref)
        return trees

    juice = make_plan(wanted, store, resolve_model=resolve).stages[0]
    assert asked == [ModelRef("wild", "best")]
    facts = {"uses": "orchard.plant", "fingerprint": trees.fingerprint}
    assert juice.inputs == {
        "trees": [{"artifact": f"artifact:{trees.fingerprint[:8]}", **facts}],
        "yeast": [{"artifact": "model:wild@best", **facts}],
    }
    assert juice.needs == []
    assert juice.payload["inputs"] == {"trees": [trees.fingerprint], "yeast": [trees.fingerprint]}
    publish(store, juice)
    assert str(make_plan(wanted, store, resolve_model=resolve).stages[0]) == "cached"
    other = spec_from_resolved({"name": "x", "stages": alone}, ["juice.yeast=~"])
    assert str(make_plan(other, store).stages[0]) == "RUN because upstream yeast changed"


def test_every_input_that_cannot_be_had_is_named(store: Store, tmp_path: Path) -> None:
    trees = publish(store, stage_of(make_plan(spec(), store), "trees"))
    bad = spec(
        f"trees.source={tmp_path}/none",
        a={"uses": "orchard.press", "trees": "artifact:ffffff"},
        b={"uses": "orchard.press", "trees": "model:m@v"},
        c={"uses": "orchard.taste", "juices": [f"artifact:{trees.fingerprint}"]},
    )
    with pytest.raises(SpecError) as caught:
        make_plan(bad, store)
    assert [str(problem) for problem in caught.value.problems] == [
        f"run.yaml: trees: cannot read {tmp_path}/none (give a file)",
        "run.yaml: a.trees: no artifact begins with 'ffffff' "
        "(`headwater show RUN` lists the artifacts of a run)",
        "run.yaml: b.trees: model:m@v cannot be resolved here (use artifact:… instead)",
        f"run.yaml: c.juices: accepts Juice, but artifact:{trees.fingerprint} is Trees",
    ]
    with pytest.raises(SpecError, match="cannot read"):
        make_plan(bad, store, only="juice")


def test_a_changed_source_is_named(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "seeds.txt"
    source.write_text("a")
    wanted = spec(f"trees.source={source}")
    publish_all(store, wanted)
    os.utime(source, (0, 0))
    assert str(stage_of(make_plan(wanted, store), "trees")) == "cached"
    source.write_text("b")
    assert (
        str(stage_of(make_plan(wanted, store), "trees")) == f"RUN because source {source} changed"
    )


# --- plan.json ---------------------------------------------------------------------------------


def test_a_plan_survives_json(store: Store) -> None:
    plan = make_plan(spec(), store, rerun=["trees"])
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert isinstance(stage_of(plan, "trees").payload["params"], dict)
