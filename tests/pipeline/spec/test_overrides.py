"""Files that extend files, and overrides on top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SpecError
from pipeline.spec.overrides import apply_overrides, resolve_extends
from pipeline.spec.yaml_reader import Tree


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    return Path()


def write(name: str, text: str) -> Path:
    Path(name).write_text(text)
    return Path(name)


def over(data: Any, *overrides: str) -> Tree:
    return apply_overrides(Tree(data, {(): "f:1"}), overrides)


def test_a_chain_of_files(here: Path) -> None:
    write("base.yaml", "name: base\nseed: 1\nstages: {a: {x: 1, y: 2}}")
    write("sub/middle.yaml", "extends: ../base.yaml\nstages: {a: {y: 3}, b: {z: [1]}}")
    top = write("top.yaml", "extends: sub/middle.yaml\nname: top")
    tree = resolve_extends(top)
    assert tree.data == {
        "name": "top",
        "seed": 1,
        "extends": "sub/middle.yaml",
        "stages": {"a": {"x": 1, "y": 3}, "b": {"z": [1]}},
    }
    assert tree.location(("name",)) == "top.yaml:2"
    assert tree.location(("seed",)) == "base.yaml:2"
    assert tree.location(("stages", "a", "x")) == "base.yaml:3"
    assert tree.location(("stages", "a", "y")) == "sub/middle.yaml:2"


def test_a_file_that_extends_nothing(here: Path) -> None:
    assert resolve_extends(write("a.yaml", "extends: ~\nname: a")).data["name"] == "a"
    assert resolve_extends(write("a.yaml", "- a")).data == ["a"]


def test_problems_of_all_files_are_kept(here: Path) -> None:
    write("base.yaml", "a: 1\na: 2")
    tree = resolve_extends(write("top.yaml", "extends: base.yaml\nb: 1\nb: 2"))
    assert [problem.where for problem in tree.problems] == ["base.yaml:2", "top.yaml:3"]


def test_a_ring_of_files_is_named(here: Path) -> None:
    write("a.yaml", "extends: sub/b.yaml")
    write("sub/b.yaml", "name: x\nextends: ../c.yaml")
    write("c.yaml", "extends: ./sub/../sub/b.yaml")
    with pytest.raises(SpecError) as caught:
        resolve_extends(Path("a.yaml"))
    assert str(caught.value) == (
        "c.yaml:1: extends: the files extend each other: sub/b.yaml -> c.yaml -> sub/b.yaml "
        "(remove one `extends`)"
    )


def test_overrides_in_their_order_the_last_on_top() -> None:
    tree = over(
        {"name": "x", "stages": {"gpt": {"train": {"lr": 1, "steps": 2}}}},
        "gpt.train.lr=3e-4",
        "stages.gpt.train.steps=1e3",
        "gpt.train={warmup_steps: 5}",
        "gpt.new.deep.key=[a, 1]",
        "gpt.text='010'",
        "gpt.input=${clean}",
        "gpt.gone=",
        "seed=4",
        "seed = 5",
        "name=y",
        "promote.model=z",
    )
    assert not tree.problems
    assert tree.data == {
        "name": "y",
        "seed": 5,
        "promote": {"model": "z"},
        "stages": {
            "gpt": {
                "train": {"lr": 3e-4, "steps": 1000, "warmup_steps": 5},
                "new": {"deep": {"key": ["a", 1]}},
                "text": "010",
                "input": "${clean}",
                "gone": None,
            }
        },
    }
    assert tree.location(("stages", "gpt", "train", "lr")) == "override 'gpt.train.lr=3e-4'"
    assert (
        tree.location(("stages", "gpt", "train", "warmup_steps"))
        == "override 'gpt.train={warmup_steps: 5}'"
    )
    assert tree.location(("stages", "gpt", "new")) == "f:1"


def test_the_longest_stage_name_wins() -> None:
    stages: dict[str, Any] = {"gpt": {}, "gpt.v2": {}, "gpt.v22": {}}
    tree = over({"stages": stages}, "gpt.v2.train.lr=1", "gpt.v.lr=2")
    assert tree.data["stages"] == {
        "gpt": {"v": {"lr": 2}},
        "gpt.v2": {"train": {"lr": 1}},
        "gpt.v22": {},
    }


@pytest.mark.parametrize(
    ("data", "text", "message"),
    [
        ({"stages": {"a": {}}}, "a.x", "expected key=value (as in gpt.train.lr=3e-4)"),
        ({"stages": {"a": {}}}, "b.x=1", "b.x: there is no stage 'b' (known: a)"),
        ({"stages": {"a": {}}}, "extends=b", "extends: there is no stage 'extends' "),
        ({"stages": {"a": {}}}, "a=1", "a: no value of the stage 'a' is named (as in a.seed=1)"),
        ({"stages": {"a": {}}}, "a.=1", "a.: a part of the key is empty (as in gpt.train.lr)"),
        ({"stages": {"a": {}}}, "promote.=1", "promote.: a part of the key is empty "),
        ({"stages": {"a": {}}}, "a.x={", "a.x: this is not YAML: "),
        ({"stages": {"a": {}}}, "a.x=&y 1", "a.x: YAML anchors (&y) are not accepted (remove it)"),
        ({"stages": 3}, "b.x=1", "b.x: there is no stage 'b' (no name is known)"),
        ([], "b.x=1", "b.x: there is no stage 'b' (no name is known)"),
    ],
)
def test_a_bad_override_is_named(data: Any, text: str, message: str) -> None:
    (problem,) = over(data, text).problems
    assert str(problem).startswith(f"override {text!r}: {message}")
