"""`plan` and `run --dry-run`."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_calls import Call, parse_json

from pipeline.storage.store import Store

TOY = """\
name: toy
stages:
  one: {uses: toy.count}
  two: {uses: toy.count, value: 10}
  sum: {uses: toy.add, numbers: ["${one}", "${two}"]}
"""


@pytest.fixture
def toy(toys: Path, tmp_path: Path) -> str:
    file = tmp_path / "toy.yaml"
    file.write_text(TOY)
    return str(file)


def test_plan(toy: str, call: Call, store: Store) -> None:
    data = parse_json(call("plan", toy, "--json"))
    assert (data["pipeline"], data["store"]) == ("toy", str(store.root))
    assert [stage["verdict"] for stage in data["stages"]] == ["run", "run", "run"]
    assert data["stages"][2]["needs"] == ["one", "two"]
    shown = call("plan", toy, "one.steps=5").stdout
    assert "plan of toy" in shown
    assert "3 to run" in shown
    assert not store.root.exists()


def test_dry_run_prints_the_plan(toy: str, call: Call, store: Store) -> None:
    assert call("run", toy, "--dry-run").stdout == call("plan", toy).stdout
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one.step=5"], "one.step: unknown key (did you mean 'steps'?)"),
        (["three.steps=5"], "three.steps: there is no stage 'three'"),
        (["--from", "tow"], "did you mean 'two'?"),
        (["--rerun", "x"], "has no stage 'x'"),
        (["--nonsense"], "No such option"),
    ],
)
def test_invalid_overrides_and_scopes(toy: str, call: Call, words: list[str], message: str) -> None:
    for command in ("plan", "run"):
        done = call(command, toy, *words, code=2)
        assert message in done.stderr
        assert "next: " in done.stderr or "(" in done.stderr


def test_missing_file(call: Call) -> None:
    assert "cannot be read: no such file" in call("plan", "nosuch.yaml", code=2).stderr
