"""The evaluate stages without their processes: params, fingerprints, and how ranks share items."""

import json
from pathlib import Path

import pytest

from pipeline.context import Context
from pipeline.errors import InputError, Interrupted
from pipeline.fingerprint import identity_fields
from pipeline.stage import Inputs
from stages.evaluate import EvaluateParams, EvaluateTasksParams, evaluate
from stages.evaluation.task_metrics import compute_task_metrics, merge_rank_results
from stages.evaluation.task_runner import run_tasks
from stages.training.ranks.rank import Rank


def test_nothing_to_measure_is_an_error(tmp_path):
    ctx = Context.local(tmp_path)
    with pytest.raises(InputError, match="no measurement is possible"):
        evaluate(EvaluateParams(), Inputs({}), ctx.out, ctx)


FARM = [
    {"question": f"what does the {thing} do?",
     "choices": [wrong, f"the {thing} runs here"], "answer": 1}
    for thing in ("cat", "dog", "owl", "saw", "axe")
    for wrong in (f"here {thing} the runs", f"runs the here {thing}")
]  # fmt: skip


@pytest.fixture
def farm(tmp_path):
    (tmp_path / "farm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in FARM))
    (tmp_path / "words.jsonl").write_text('{"text": "the cat runs here"}\n' * 3)
    return EvaluateTasksParams(
        tasks=[str(tmp_path / n) for n in ("farm.jsonl", "words.jsonl")], limit=7
    )


def test_ranks_share_the_items_of_tasks(world, farm, tmp_path):
    """What two ranks find is what one finds, each item once, in the order of the file."""
    tasks = farm.load_tasks()
    alone = run_tasks(Rank(), tasks, world / "policy", {})
    parts = [run_tasks(Rank(index=i, world=2), tasks, world / "policy", {}) for i in range(2)]
    for task in tasks:
        together = merge_rank_results([part[task.name] for part in parts])
        assert [one.item for one in together] == task.scored_items
        for one, two in zip(alone[task.name], together, strict=True):
            assert [s.log_prob for s in one.scores] == pytest.approx(
                [s.log_prob for s in two.scores], abs=1e-4
            )
    # The policy was taught to say sentences.
    assert compute_task_metrics(tasks[0], alone["farm"]).metrics["acc"] == 1
    (tmp_path / "cancel").touch()
    with pytest.raises(Interrupted):
        run_tasks(Rank(), tasks, world / "policy", {}, tmp_path / "cancel")


def test_tasks_are_identified_by_content_not_path(farm, tmp_path):
    before = farm.externals()
    assert set(before) == {"tasks.farm", "tasks.words"}
    (tmp_path / "there").mkdir()
    moved = [Path(path).rename(tmp_path / "there" / Path(path).name) for path in farm.tasks]
    there = farm.model_copy(update={"tasks": tuple(map(str, moved))})
    assert there.externals() == before
    assert identity_fields(there) == identity_fields(farm)
    moved[1].write_text('{"text": "the cat runs there"}\n')
    assert {k for k, v in there.externals().items() if v != before[k]} == {"tasks.words"}


def test_invalid_tasks_are_reported_before_the_run(farm, tmp_path):
    with pytest.raises(InputError, match="num_fewshot is 2, but only 0 other items"):
        farm.model_copy(
            update={"num_fewshot": 2}
        ).externals()  # the cloze says one thing three times
    twice = farm.model_copy(update={"tasks": (farm.tasks[0], farm.tasks[0])})
    with pytest.raises(InputError, match="two tasks are named 'farm'"):
        twice.externals()
    with pytest.raises(InputError, match="no such task file"):
        EvaluateTasksParams(tasks=[str(tmp_path / "gone.jsonl")]).externals()
