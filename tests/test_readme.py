"""Every command that the README shows is run here, in its order, on one fresh store.

`make test` is the command that runs this file; `make demo` runs with the environment that is
already installed. What the quickstart promises is read from its own results.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hf_parity import assert_transformers_agree

from pipeline.kind import is_promotable
from pipeline.storage.artifact import Artifact

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
HEADWATER = Path(sys.executable).parent / "headwater"
MINUTES = 60

pytestmark = [pytest.mark.readme, pytest.mark.timeout(40 * MINUTES)]


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    return [line[2:] for line in lines]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("readme") / "store"
    yield folder
    run([str(HEADWATER), "cluster", "down"], folder, check=False)


def run(
    command: list[str] | str, store: Path, *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HEADWATER_STORE": str(store)}
    for name in ("MLFLOW_TRACKING_URI", "MAKEFLAGS"):  # flags of the `make` that we may run under
        environment.pop(name, None)
    words = command if isinstance(command, list) else ["bash", "-c", command]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert not check or done.returncode == 0, (
        f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    )
    return done


@pytest.mark.parametrize("command", [c for c in commands() if c != "make test"])
def test_command(command: str, store: Path) -> None:
    local = command.replace(".venv/bin/headwater", str(HEADWATER))
    done = run(local, store)
    assert "Traceback" not in done.stdout + done.stderr


def results(store: Path) -> dict[str, dict[str, Any]]:
    status = json.loads(run([str(HEADWATER), "status", "latest", "--json"], store).stdout)
    return {stage["name"]: stage for stage in status["stages"]}


def test_the_quickstart_keeps_its_promises(store: Path) -> None:
    """The curves move the right way: see the table of results in the README."""
    stages = results(store)
    evaluation = stages["evaluate"]["metrics"]
    assert evaluation["reward_accuracy"] > 0.75
    assert evaluation["reward_after"] > evaluation["reward_before"]
    assert 0 < evaluation["kl"] < 10
    assert evaluation["finished_after"] > 0.8
    assert evaluation["reward_after"] == pytest.approx(
        stages["ppo"]["metrics"]["reward_after"], abs=1e-3
    )
    assert stages["augment"]["metrics"]["synthetic"] > 0
    gain = evaluation["answer_loss"] - evaluation["answer_loss_augmented"]
    assert evaluation["augmentation_gain"] == pytest.approx(gain)
    assert 0 < evaluation["augmentation_gain_stderr"] < 0.1
    series = Path(stages["gpt"]["path"]) / "observed" / "metrics.jsonl"
    losses = [point["loss"] for point in map(json.loads, series.open()) if "loss" in point]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


def test_every_model_of_the_quickstart_loads_in_transformers(store: Path) -> None:
    found = [Artifact.read(path.parent) for path in (store / "artifacts").glob("*/*/manifest.json")]
    models = [made for made in found if is_promotable(made.kind)]
    for made in models:
        assert_transformers_agree(made.path)
    made_by = Counter(made.uses for made in models)
    assert {"pretrain", "sft", "reward", "ppo"} <= set(made_by)
    assert made_by["sft"] >= 3, "the assistant, the speaker, and the one with synthetic questions"


def test_the_stage_of_the_readme_works(store: Path, tmp_path: Path) -> None:
    """The example is a whole stage: as a package of one's own it runs on the store's corpus."""
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code
    (tmp_path / "count.py").write_text(code.group(1))
    documents = results(store)["clean"]["path"]
    script = (
        "from pathlib import Path\n"
        "import count, json, sys\n"
        "from types import SimpleNamespace\n"
        "from pipeline.context import Context\n"
        "from pipeline.stage import Inputs\n"
        "ctx = Context.local(Path('work'))\n"
        f"corpus = SimpleNamespace(path={documents!r})\n"
        "count.count(count.CountParams(), Inputs({'documents': corpus}), ctx.out, ctx)\n"
        "print(json.loads((ctx.out / 'metrics.json').read_text())['documents'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
