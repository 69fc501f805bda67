"""`compare`: what the store holds of several load_training_curves, side by side."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import sample_run
from click.testing import CliRunner, Result

from launch.cli import cli
from launch.report.training_curves import (
    TrainingCurve,
    at_equal_cost,
    differences,
    load_training_curves,
)
from pipeline.errors import UserError
from pipeline.execution.run import Run
from pipeline.storage.store import Store

SLOW, FAST = "20261121-0203-calm-heron", "20261121-0303-wise-owl"
TOKENS, FLOPS = 1000.0, 3e6
Point = dict[str, float]


def point(step: int, rate: float, **more: float) -> Point:
    return {"step": step, "loss": 2 + 4 * math.exp(-rate * step), "step_seconds": 0.5,
            "tokens_per_second": 2 * TOKENS, "tokens": step * TOKENS,
            "flops": step * TOKENS * FLOPS, **more}  # fmt: skip


def series(steps: int, rate: float) -> list[Point]:
    """Return a series as a training writes it: an evaluation is a separate point."""
    made = [point(step, rate) for step in range(1, steps + 1)]
    tested = {"eval_loss": made[-1]["loss"] + 0.1, "eval_bits_per_byte": 1.5}
    return [*made, {"step": steps, **tested}]


def leave(run: Run, name: str, points: list[Point]) -> None:
    """Give a stage this series instead of its own."""
    (path,) = [stage.path for stage in run.status().stages if stage.name == name]
    found = Path(path) / "observed" / "metrics.jsonl"
    found.write_text("".join(json.dumps(made) + "\n" for made in points))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Make two runs with the same data: the first has half the steps and another learning rate."""
    monkeypatch.chdir(tmp_path)
    names = ("clean", "tokenizer", "tokens", "gpt", "sft")
    stages, prints = copy.deepcopy(sample_run.STAGES), sample_run.print_of
    monkeypatch.setattr(sample_run, "STAGES", stages)
    for run_id, mark, steps, rate, lr in ((SLOW, "a", 40, 0.02, 1e-3), (FAST, "b", 80, 0.05, 3e-4)):
        stages["gpt"]["train"] |= {"lr": lr}

        def marked(name: str, mark: str = mark) -> str:
            return mark + prints(name)[1:] if name == "gpt" else prints(name)

        monkeypatch.setattr(sample_run, "print_of", marked)
        fresh = names if mark == "a" else ("gpt",)
        run = sample_run.make(tmp_path / "store", run_id=run_id, names=fresh)
        leave(run, "gpt", series(steps, rate))
    yield Store(tmp_path / "store")


@pytest.fixture
def call(store: Store) -> Callable[..., Result]:
    def invoke(*words: str, code: int = 0) -> Result:
        done = CliRunner().invoke(cli, ["compare", *words, "--store", str(store.root)])
        assert done.exit_code == code, done.output
        return done

    return invoke


def pair(store: Store, metric: str = "loss") -> list[TrainingCurve]:
    (group,) = load_training_curves([(Run(store, name), "gpt") for name in (SLOW, FAST)], metric)
    return group


# --- what is read --------------------------------------------------------------------------------


def test_the_metric_over_each_axis(store: Store) -> None:
    slow, fast = pair(store)
    losses = [made["loss"] for made in series(40, 0.02)[:-1]]
    spent = {"tokens": TOKENS, "flops": TOKENS * FLOPS, "seconds": 0.5, "step": 1}
    for axis, each in spent.items():
        places, values = zip(*slow.points_over(axis), strict=True)
        assert places == pytest.approx([n * each for n in range(1, 41)])
        assert list(values) == losses
    assert slow.summary() == {
        "final": losses[-1], "eval_loss": losses[-1] + 0.1, "bits_per_byte": 1.5,
        "tokens": 40 * TOKENS, "flops": 40 * TOKENS * FLOPS, "seconds": 20.0, "steps": 40,
        "tokens_per_second": 2 * TOKENS,
    }  # fmt: skip
    assert (slow.name, fast.name) == ("calm-heron", "wise-owl")


def test_evaluation_points_have_the_cost_of_their_step(store: Store) -> None:
    slow, _ = pair(store, "eval_loss")
    ((at, _),) = slow.points_over("tokens")
    assert at == 40 * TOKENS


def test_series_without_token_counts(store: Store) -> None:
    old = [{k: v for k, v in made.items() if k not in ("tokens", "flops")}
           for made in series(40, 0.02)]  # fmt: skip
    leave(Run(store, SLOW), "gpt", old)
    slow, fast = pair(store)
    places = [at for at, _ in slow.points_over("tokens")]
    assert places == pytest.approx([TOKENS * n for n in range(1, 41)])
    assert slow.points_over("flops") == [] and fast.points_over("flops")
    assert at_equal_cost([slow, fast], "flops") is None
    leave(Run(store, SLOW), "gpt", [{"step": n, "loss": 9.0 - n} for n in range(5)])
    slow, fast = pair(store)
    assert [axis for axis in ("tokens", "flops", "seconds", "step") if slow.points_over(axis)] == [
        "step"
    ]
    assert slow.summary()["tokens_per_second"] is None


def test_metric_prefix_selects_the_axes(store: Store) -> None:
    other = [{"step": n, "critic_loss": 1.0, "critic_step_seconds": 2.0, "critic_tokens": 7.0 * n}
             for n in range(1, 4)]  # fmt: skip
    leave(Run(store, SLOW), "gpt", [*series(3, 0.1), *other])
    ((one,),) = load_training_curves([(Run(store, SLOW), "gpt")], "critic_loss")
    assert one.points_over("tokens") == [(7, 1), (14, 1), (21, 1)]
    assert one.cumulative("seconds")[3] == 6


def test_values_at_equal_cost(store: Store) -> None:
    at, values = at_equal_cost(pair(store), "tokens") or (0, [])
    assert at == 40 * TOKENS
    expected = [[2 + 4 * math.exp(-rate * n) for n in (38, 39, 40)] for rate in (0.02, 0.05)]
    assert values == pytest.approx([sum(three) / 3 for three in expected])
    assert at_equal_cost(pair(store)[:1], "tokens") is None


def test_differences_only(store: Store) -> None:
    assert differences(pair(store)) == {"train.lr": ["0.001", "0.0003"]}
    mixed = [*pair(store), *load_training_curves([(Run(store, SLOW), "sft")], "loss")[0]]
    found = differences(mixed)
    assert found["train.lr"] == ["0.001", "0.0003", "0.0003"]
    assert "train.steps" not in found  # of another kind of stage, which is no difference


def test_groups_by_kind_of_stage(store: Store) -> None:
    groups = load_training_curves([(Run(store, SLOW), ""), (Run(store, FAST), "")], "loss")
    assert [[one.name for one in group] for group in groups] == [
        ["calm-heron", "wise-owl"], ["calm-heron"]
    ]  # fmt: skip
    (named,) = load_training_curves([(Run(store, SLOW), "gpt"), (Run(store, SLOW), "sft")], "loss")
    assert [one.name for one in named] == ["calm-heron:gpt", "calm-heron:sft"]


def test_shared_artifact_is_one_curve(store: Store) -> None:
    twin = store.root / "runs" / "20261122-0203-calm-heron"
    shutil.copytree(store.root / "runs" / SLOW, twin)
    ((one,),) = load_training_curves(
        [(Run(store, SLOW), "gpt"), (Run(store, twin.name), "gpt")], "loss"
    )
    assert (one.run.id, one.other_runs) == (SLOW, [twin.name])
    leave(Run(store, SLOW), "gpt", series(40, 0.02))
    group = load_training_curves(
        [(Run(store, SLOW), "gpt"), (Run(store, twin.name), "sft")], "loss"
    )[0]
    assert group[0].name == f"{SLOW}:gpt"  # their words are the same


def test_unknown_stages_and_metrics(store: Store) -> None:
    slow = Run(store, SLOW)
    with pytest.raises(UserError, match="has no stage 'gtp'") as found:
        load_training_curves([(slow, "gtp")], "loss")
    assert "gpt" in found.value.remedy
    with pytest.raises(UserError, match="no series of 'los'") as found:
        load_training_curves([(slow, "gpt")], "los")
    assert "loss" in found.value.remedy
    with pytest.raises(UserError, match="no series"):
        load_training_curves([(slow, "clean")], "loss")
    with pytest.raises(UserError, match=r"no stage of run .* has a series of 'reward'"):
        load_training_curves([(slow, "")], "reward")


def test_unfinished_stage_is_compared_so_far(tmp_path: Path) -> None:
    run = sample_run.make(tmp_path, names=("clean", "gpt"), failed="gpt")
    ((one,),) = load_training_curves([(run, "")], "loss")
    assert one.stage.state == "failed"
    assert one.summary()["tokens"] == 40 * 8192


# --- the command ---------------------------------------------------------------------------------


def test_json_fields(call: Callable[..., Result], tmp_path: Path) -> None:
    data = json.loads(call(SLOW, "wise-owl", "--stage", "gpt", "--json").stdout)
    assert set(data) == {"metric", "page", "groups"}
    assert data["page"] is None and not list(tmp_path.rglob("*.html"))
    (group,) = data["groups"]
    assert set(group) == {"uses", "lines", "differences", "meetings"}
    keys = "name run same stage uses state fingerprint summary points"
    assert all(set(line) == set(keys.split()) for line in group["lines"])
    first = group["lines"][0]
    assert (first["run"], first["stage"], first["state"]) == (SLOW, "gpt", "finished")
    assert {len(values) for values in first["points"].values()} == {40}
    assert set(first["points"]) == {"step", "loss", "tokens", "flops", "seconds"}
    assert set(group["meetings"]) == {"tokens", "flops", "seconds", "step"}
    assert group["meetings"]["step"]["at"] == 40
    grouped = json.loads(call(SLOW, "--json").stdout)["groups"]
    assert [group["uses"] for group in grouped] == ["pretrain", "sft"]


def test_summary_table(call: Callable[..., Result], store: Store) -> None:
    lines = call(f"{SLOW}:gpt", "wise-owl:gpt").stdout.splitlines()
    assert lines[0].split() == [
        "training", "state", "loss", "eval", "loss", "bits", "per", "byte", "tokens", "FLOPs",
        "time", "tokens/s",
    ]  # fmt: skip
    assert lines[2].split()[0] == "calm-heron" and "1.2e11" in lines[2]
    assert any(line.split()[:3] == ["at", "40,000", "tokens"] for line in lines)
    assert any(line.split() == ["train.lr", "0.001", "0.0003"] for line in lines)
    assert lines[-1] == str(store.root / "compare.html")
    assert (store.root / "compare.html").is_file()


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_page_is_self_contained(call: Callable[..., Result], tmp_path: Path) -> None:
    call(SLOW, FAST, "--stage", "gpt", "-o", "both.html")
    text = (tmp_path / "both.html").read_text()
    page = Tags(text)
    assert not {"script", "link", "img", "iframe", "a"} & {tag for tag, _ in page.tags}
    assert not any({"src", "href"} & set(attributes) for _, attributes in page.tags)
    assert "default-src 'none'" in text
    for words in (
        "loss over tokens", "loss over FLOPs", "loss over time", "train.lr", SLOW, FAST
    ):  # fmt: skip
        assert words in text
    call(SLOW, FAST, "--stage", "gpt", "-o", "one.html", "--against", "flops")
    assert (tmp_path / "one.html").read_text().count("<h4>") == 1


def test_series_without_costs_are_drawn_by_step(
    store: Store, call: Callable[..., Result], tmp_path: Path
) -> None:
    leave(Run(store, SLOW), "gpt", [{"step": n, "loss": 9.0 - n} for n in range(5)])
    call(f"{SLOW}:gpt", "-o", "steps.html")
    assert "loss over steps" in (tmp_path / "steps.html").read_text()
    call(f"{SLOW}:gpt", f"{FAST}:gpt", "-o", "some.html")
    assert "not recorded by calm-heron" in (tmp_path / "some.html").read_text()


def test_hostile_text_stays_text(store: Store, call: Callable[..., Result]) -> None:
    """Put hostile text into a value of the pipeline file and into a metric name."""
    run = Run(store, SLOW)
    config: Any = (run.folder / "run.yaml").read_text()
    bad = "<script>a()</script>\\u202e"
    (run.folder / "run.yaml").write_text(config.replace("family: gpt2", f'family: "{bad}"'))
    points = [{**made, "<script>": 1.0} for made in series(10, 0.1)]
    leave(run, "gpt", points)
    leave(Run(store, FAST), "gpt", points)
    shown = call(SLOW, FAST, "--stage", "gpt", "--metric", "<script>").stdout
    text = (store.root / "compare.html").read_text()
    assert "<script" not in text and "\u202e" not in text + shown
    assert "family" in text


def test_invalid_arguments_exit_with_2(call: Callable[..., Result]) -> None:
    call("nosuch", code=2)
    call(f"{SLOW}:nothing", code=2)
    call(SLOW, "--against", "money", code=2)
    assert "no such folder" in call(SLOW, "-o", "gone/page.html", code=2).output
