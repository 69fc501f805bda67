"""A bit flips in any file that a later run may read: the run notices, and its artifacts are those
of an undisturbed run."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.context import Context
from pipeline.errors import HeadwaterError, Interrupted
from pipeline.execution.attempt import Job, Outcome, run_attempt
from pipeline.execution.plan import make_plan
from pipeline.execution.resources import Resources
from pipeline.execution.run import Run
from pipeline.execution.runner import execute
from pipeline.spec.spec_checker import load_spec
from pipeline.stage import Stage
from pipeline.storage.store import Store
from stages.text.sources import source_listing

WORDS = ("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "harbor", "inlet", "kelp")


class InThisProcess:
    """Attempts in this process."""

    def start(self) -> list[Resources]:
        return [Resources(4)]

    def source_hash(self, stage: Stage) -> str:
        return ""

    def code(self, stage: Stage) -> dict[str, Any]:
        return {"commit": "b" * 40, "dirty": False, "source_hash": ""}

    def run(self, job: Job, stop: Callable[[], bool]) -> Outcome:
        return run_attempt(job)

    def close(self) -> None:
        """Nothing was started."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three source files, each a shard of its own."""
    folder = tmp_path_factory.mktemp("flips")
    choose = random.Random(3)
    for name in "abc":
        lines = [
            json.dumps({"text": " ".join(choose.choices(WORDS, k=choose.randint(20, 40)))})
            for _ in range(8)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_listing, "SHARD_BYTES", 1)


def begin(store: Store, folder: Path, minimum: int) -> Run:
    """A run of two corpora; the second depends on the index of the first."""
    clean = {"uses": "clean", "rules": ["length"]}
    first, second = ({"length": {"characters": [n, None]}} for n in (5, minimum))
    stages = {
        "first": {**clean, "limits": first, "sources": [str(folder / "a.jsonl")]},
        "second": {
            **{**clean, "limits": second, "sources": [str(folder)]},
            "dedup_against": ["${first}"],
        },
    }
    pipeline = {"name": "flips", "stages": stages}
    file = store.root.with_suffix(".yaml")
    file.write_text(json.dumps(pipeline))
    spec = load_spec(file)
    return Run.create(store, spec, make_plan(spec, store))


def digests(store: Store, run: Run) -> dict[str, str]:
    """The digest of the artifact of each stage, whose bytes must be those of its manifest."""
    found = {}
    for stage in run.status().stages:
        artifact = store.find(stage.uses, stage.fingerprint)
        assert artifact and not artifact.verify()
        assert artifact.metrics.get("left_out_early", 1.0) == 1.0
        found[stage.name] = artifact.digest
    return found


def sweep(before: Path, tmp_path: Path, go_on: Callable[[Store], Run], flips: int) -> list[str]:
    """Flip bits of each file of a store, continue on a copy, and compare the artifacts; return
    the files that made the run fail."""
    shutil.copytree(before, tmp_path / "right")
    right = Store(tmp_path / "right")
    expected = digests(right, go_on(right))
    failed = []
    files = sorted(p.relative_to(before) for p in before.rglob("*") if p.is_file())
    assert len(files) > 15
    for file in files:
        choose = random.Random(str(file))
        size = (before / file).stat().st_size
        for bit in choose.sample(range(8 * size), min(flips, 8 * size)):
            shutil.rmtree(tmp_path / "flipped", ignore_errors=True)
            shutil.copytree(before, tmp_path / "flipped")
            content = bytearray((before / file).read_bytes())
            content[bit // 8] ^= 1 << bit % 8
            (tmp_path / "flipped" / file).write_bytes(content)
            store = Store(tmp_path / "flipped")
            try:
                run = go_on(store)
            except HeadwaterError:
                failed.append(str(file))
                continue
            if run.status().state != "finished":
                failed.append(str(file))
            else:
                assert digests(store, run) == expected, f"bit {bit} of {file}"
    return failed


FLIPS = [1, pytest.param(20, marks=pytest.mark.long)]


@pytest.mark.parametrize("flips", FLIPS)
def test_a_later_run_reads_no_flipped_bit(folder: Path, tmp_path: Path, flips: int) -> None:
    store = Store(tmp_path / "store")
    assert execute(begin(store, folder, 5), InThisProcess()).state == "finished"

    def go_on(store: Store) -> Run:
        run = begin(store, folder, 160)
        execute(run, InThisProcess(), backoff=0.001)
        return run

    assert sweep(store.root, tmp_path, go_on, flips) == []


@pytest.mark.parametrize("flips", FLIPS)
def test_a_resumed_run_reads_no_flipped_bit(
    folder: Path, tmp_path: Path, flips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    run = begin(store, folder, 5)

    def check(context: Context) -> None:
        if len(list(context.scratch.glob("annotated/*.seal"))) == 2:
            context.result(left_out_early=1.0)
            context.cancel_file.touch()
            raise Interrupted("stopped on request")

    with monkeypatch.context() as patch:
        patch.setattr(Context, "check_cancelled", check)
        assert execute(run, InThisProcess()).state == "interrupted"
    assert list(store.root.rglob("work/*/*/scratch/annotated/000001"))

    def go_on(store: Store) -> Run:
        again = Run(store, run.id)
        execute(again, InThisProcess(), backoff=0.001)
        return again

    failed = sweep(store.root, tmp_path, go_on, flips)
    assert {Path(file).name for file in failed} <= {"run.yaml", "plan.json", "journal.jsonl"}
