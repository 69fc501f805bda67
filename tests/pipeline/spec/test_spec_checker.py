"""From a pipeline file to a typed description, or to every problem that it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orchard
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from orchard import steady

from pipeline.errors import SpecError
from pipeline.spec.pipeline_spec import ArtifactRef, ModelRef, Node, Promotion, Spec, StageRef
from pipeline.spec.spec_checker import load_spec, spec_from_resolved
from pipeline.stage import Params

Case = tuple[str, list[str], str]

ORCHARD = """
name: cider
seed: 7
stages:
  cider:
    uses: orchard.press
    trees: ${early}
    more: [${late}, 'artifact:0123456789abcdef']
    yeast: model:wild
    sweetness: 1e-4
  early: {uses: orchard.plant, rows: 1e3, soil: {depth: 1}, label: no, water: 010, organic: true}
  late: {uses: orchard.plant, rows: 2, seed: 5, source: '${env:KEY}', short: on}
  taste: {uses: orchard.taste, juices: [${cider}, model:cider@v-2], retries: {worker: 0}}
  bottle: {uses: orchard.bottle, juice: '${cider}'}
promote: {model: cider, stage: '${bottle}', require: ['taste.score>=champion+0.01']}
"""


def cases() -> list[Case]:
    """The cases of bad_configs.txt: the file's text, overrides, messages."""
    found = []
    text = Path(__file__).with_name("bad_configs.txt").read_text()
    for case in text.split("===\n")[1:]:
        lines = case.splitlines()
        body = "\n".join(line for line in lines if line[:2] not in ("$ ", "! "))
        overrides = [line[2:] for line in lines if line.startswith("$ ")]
        found.append((body, overrides, "\n".join(x[2:] for x in lines if x.startswith("! "))))
    return found


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("f.yaml")


def spec(file: Path, text: str = ORCHARD, *overrides: str) -> Spec:
    file.write_text(text)
    return load_spec(file, overrides)


def only(params: str = "", *, edges: str = "") -> str:
    return f"name: x\nstages:\n  p: {{uses: orchard.plant, rows: 2{params}}}\n{edges}"


# --- good files --------------------------------------------------------------------------------


def test_a_file_becomes_typed(file: Path) -> None:
    found = spec(file)
    assert (found.name, found.seed, found.source) == ("cider", 7, "f.yaml")
    assert list(found.nodes) == ["early", "late", "cider", "taste", "bottle"]
    cider, early, late = (found.nodes[name] for name in ("cider", "early", "late"))
    assert cider.edges == {
        "trees": (StageRef("early"),),
        "more": (StageRef("late"), ArtifactRef("0123456789abcdef")),
        "yeast": (ModelRef("wild", "champion"),),
    }
    assert (cider.needs, cider.where) == (("early", "late"), "f.yaml:5")
    assert isinstance(cider, Node)
    assert cider.stage.output == "Juice"
    assert cider.params == orchard.Press(sweetness=1e-4)
    assert isinstance(early.params, orchard.Plant)
    assert (early.params.rows, early.params.label, early.params.water) == (1000, "no", 10.0)
    assert isinstance(late.params, orchard.Plant)
    assert (late.params.source, late.params.short) == ("${env:KEY}", "on")
    assert found.nodes["taste"].edges["juices"][1] == ModelRef("cider", "v-2")
    gate = "taste.score>=champion+0.01"
    assert found.promote == Promotion("cider", "bottle", "champion", (gate,))


def test_the_seed_of_the_pipeline_reaches_stages_that_set_none(file: Path) -> None:
    seeds = [node.params.model_dump().get("seed") for node in spec(file).nodes.values()]
    assert seeds == [7, 5, None, None, None]
    overridden = spec(file, ORCHARD, "seed=9")
    assert overridden.nodes["early"].params.model_dump()["seed"] == 9
    assert spec(file, only()).nodes["p"].params.model_dump()["seed"] == 0


def test_references_are_written_as_they_are_read(file: Path) -> None:
    refs = [
        ref for node in spec(file).nodes.values() for refs in node.edges.values() for ref in refs
    ]
    assert [str(ref) for ref in refs] == [
        "${early}",
        "${late}",
        "artifact:0123456789abcdef",
        "model:wild@champion",
        "${cider}",
        "model:cider@v-2",
        "${cider}",
    ]


def test_optional_edges_may_be_left_out_or_be_nothing(file: Path) -> None:
    edges = "  j: {uses: orchard.press, trees: ${p}, yeast: ~, more: []}"
    assert spec(file, only(edges=edges)).nodes["j"].edges == {"trees": (StageRef("p"),)}


def test_one_artifact_may_stand_for_a_list(file: Path) -> None:
    edges = "  j: {uses: orchard.press, trees: ${p}, more: ${p}}"
    assert spec(file, only(edges=edges)).nodes["j"].edges["more"] == (StageRef("p"),)


def test_a_promotion_may_name_its_stage_bare(file: Path) -> None:
    edges = "  b: {uses: orchard.bottle, juice: artifact:abcdef}\n"
    found = spec(file, only(edges=edges) + "promote: {model: m, stage: b, alias: best}")
    assert found.promote == Promotion("m", "b", "best")


def test_stages_see_those_above_them(file: Path) -> None:
    found = spec(file)
    above = found.upstream("taste")
    assert list(above) == ["juices[0]", "juices[1]"]
    assert len(above) == 2
    assert above["juices[0].trees"] == found.nodes["early"].params
    assert above["juices[0].more[0]"] == found.nodes["late"].params
    assert above["juices[1]"] == Params()
    assert "juices[1].trees" not in above
    assert "juices[2]" not in above
    assert above.get("juices[0].trees.none") is None
    assert list(found.upstream("cider")) == ["trees", "more[0]", "more[1]", "yeast"]


# --- run.yaml ----------------------------------------------------------------------------------


def test_resolved_is_plain_and_reads_back_as_the_same_spec(file: Path) -> None:
    file.with_name("base.yaml").write_text(ORCHARD)
    text = "extends: base.yaml\nstages: {late: {rows: 4}}"
    found = spec(file, text, "early.water=3", "promote.alias=best")
    assert "extends" not in found.resolved
    assert found.resolved["stages"]["early"]["water"] == 3
    assert found.resolved["stages"]["late"]["source"] == "${env:KEY}"
    for copied in (
        json.loads(json.dumps(found.resolved)),
        yaml.safe_load(yaml.safe_dump(found.resolved, sort_keys=True)),
    ):
        again = spec_from_resolved(copied)
        assert again == found
        assert again.resolved == found.resolved
        assert again.source == "run.yaml"


def test_resolved_takes_overrides_of_its_own(file: Path) -> None:
    found = spec(file)
    again = spec_from_resolved(found.resolved, ["seed=9", "late.rows=3"], "there")
    assert again != found
    assert again.nodes["early"].params.model_dump()["seed"] == 9
    assert found.resolved["stages"]["late"]["rows"] == 2
    with pytest.raises(SpecError, match=r"^there: late\.rows: expected a whole number"):
        data = json.loads(json.dumps(found.resolved))
        data["stages"]["late"]["rows"] = "2"
        spec_from_resolved(data, (), "there")


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0$"), max_size=20)
names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,5}", fullmatch=True).filter(
    lambda name: name not in ("name", "seed", "extends", "stages", "promote")
)
plants = st.fixed_dictionaries(
    {"uses": st.just("orchard.plant"), "rows": st.integers(14, 100)},
    optional={
        "seed": st.integers(0, 9),
        "water": st.floats(allow_nan=False, allow_infinity=False),
        "organic": st.booleans(),
        "label": words | st.none(),
        "names": st.lists(words.filter("rotten".__ne__), min_size=1, max_size=3),
        "soil": st.fixed_dictionaries({}, optional={"grit": st.floats(0.1, 0.9)}),
        "either": st.integers() | st.lists(words),
        "prices": st.dictionaries(words, st.floats(0, 1e9)),
    },
)
files = st.dictionaries(names, plants, min_size=1, max_size=3)


@steady
@given(files, st.integers(0, 2**31))
def test_any_file_survives_the_round_trip(stages: dict[str, Any], seed: int) -> None:
    found = spec_from_resolved({"name": "x", "seed": seed, "stages": stages})
    again = spec_from_resolved(json.loads(json.dumps(found.resolved)))
    assert again == found
    for name, section in stages.items():
        params = found.nodes[name].params.model_dump(mode="json")
        expected = {key: value for key, value in section.items() if key not in ("uses", "soil")}
        assert {key: params[key] for key in expected} == expected


# --- bad files ---------------------------------------------------------------------------------


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(-9, 9)
    | st.sampled_from(
        ["p", "orchard.press", "orchard.plant", "${p}", "${q}", "artifact:abcdef", "p.x<3", ""]
    ),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["uses", "rows", "trees", "soil", "p"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@steady
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": anything,
            "seed": anything,
            "stages": anything | st.dictionaries(st.sampled_from("pq"), anything),
            "promote": anything
            | st.fixed_dictionaries({"model": anything, "stage": anything, "require": anything}),
        },
    ),
    st.lists(st.sampled_from(["p.rows=3", "seed=", "promote.stage=p", "p.soil=[]", "q.x={"])),
)
def test_whatever_stands_in_a_file_is_read_or_refused(data: Any, overrides: list[str]) -> None:
    """Only a SpecError is raised, and each of its problems has a message."""
    try:
        spec_from_resolved(data, overrides)
    except SpecError as error:
        assert all(problem.message and problem.where for problem in error.problems)


def test_there_are_enough_bad_files() -> None:
    assert len(cases()) >= 90


@pytest.mark.parametrize("case", cases(), ids=lambda case: case[2].splitlines()[0][:70])
def test_a_bad_file_is_refused_in_plain_words(file: Path, case: Case) -> None:
    text, overrides, messages = case
    with pytest.raises(SpecError) as caught:
        spec(file, text, *overrides)
    assert str(caught.value) == messages
    assert caught.value.exit_code == 2


def test_all_problems_come_at_once(file: Path) -> None:
    text = only(", rowz: 1, water: wet", edges="  j: {uses: orchard.press, trees: ${q}, yeast: 3}")
    with pytest.raises(SpecError) as caught:
        spec(file, "sed: 1\n" + text, "p.organic=no", "q.x=1")
    assert [problem.key for problem in caught.value.problems] == [
        "q.x",
        "sed",
        "p.water",
        "p.organic",
        "p.rowz",
        "j.trees",
        "j.yeast",
    ]


def test_an_unknown_stage_with_a_hostile_name(file: Path) -> None:
    with pytest.raises(SpecError, match=r"unknown stage '\.\./\.\./x' \(known: "):
        spec(file, "name: x\nstages: {p: {uses: ../../x}}")


def test_checks_run_beside_other_problems(file: Path) -> None:
    text = only(", rowz: 1", edges="  q: {uses: orchard.plant, rows: 2, names: [rotten]}")
    with pytest.raises(SpecError, match=r"rowz(.|\n)*is rotten"):
        spec(file, text)


def test_secrets_stay_names(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "hunter2")
    assert "hunter2" not in repr(spec(file))


def test_specs_and_plans_load_nothing_heavy() -> None:
    code = (
        "import sys, pipeline.spec.spec_checker, pipeline.execution.plan;"
        "print([m for m in ('torch', 'ray', 'mlflow', 'numpy', 'stages') if m in sys.modules])"
    )
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "[]"
