"""A run as a driver leaves it, made by the real store and journal: for the readers' tests."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline import panels
from pipeline.context import Context
from pipeline.execution.run import Run
from pipeline.storage.artifact import Artifact
from pipeline.storage.store import PublishRequest, Store

STAGES: dict[str, dict[str, Any]] = {
    "clean": {
        "uses": "clean",
        "sources": ["python:docs"],
        "languages": ["en"],
        "kind": "Documents",
    },
    "tokenizer": {
        "uses": "tokenize.train",
        "documents": "${clean}",
        "vocab_size": 4096,
        "kind": "Tokenizer",
    },
    "tokens": {
        "uses": "tokenize.pack",
        "documents": "${clean}",
        "tokenizer": "${tokenizer}",
        "kind": "Tokens",
    },
    "gpt": {
        "uses": "pretrain",
        "tokens": "${tokens}",
        "model": {"family": "gpt2", "num_layers": 4, "hidden_size": 128, "num_heads": 4},
        "train": {"steps": 300, "global_batch_size": 32, "lr": 1e-3, "zero_stage": 1},
        "workers": {"num": 2},
        "kind": "Model",
    },
    "dialogue": {"uses": "dialogue", "tokenizer": "${tokenizer}", "kind": "Conversations"},
    "preferences": {
        "uses": "python_preferences",
        "tokenizer": "${tokenizer}",
        "kind": "Preferences",
    },
    "sft": {
        "uses": "sft",
        "model": "${gpt}",
        "conversations": "${dialogue}",
        "train": {"steps": 120, "lr": 3e-4},
        "kind": "Model",
    },
    "reward": {
        "uses": "reward",
        "model": "${sft}",
        "preferences": "${preferences}",
        "train": {"steps": 80, "lr": 2e-4},
        "kind": "RewardModel",
    },
    "ppo": {
        "uses": "ppo",
        "policy": "${sft}",
        "reward": "${reward}",
        "pretraining": "${tokens}",
        "iterations": 60,
        "kl": {"target": 0.3},
        "kind": "Model",
    },
    "evaluate": {
        "uses": "evaluate",
        "models": ["${gpt}", "${sft}", "${ppo}"],
        "reward": "${reward}",
        "tokens": "${tokens}",
        "kind": "Metrics",
    },
}
EDGES = {
    "clean": [],
    "tokenizer": ["clean"],
    "tokens": ["clean", "tokenizer"],
    "gpt": ["tokens"],
    "dialogue": ["tokenizer"],
    "preferences": ["tokenizer"],
    "sft": ["gpt", "dialogue"],
    "reward": ["sft", "preferences"],
    "ppo": ["sft", "reward", "tokens"],
    "evaluate": ["gpt", "sft", "ppo", "reward", "tokens"],
}
HOSTILE = '</script><script>a()</script><img src=x onerror="a()"> \u202egnp \x1b[31m &amp;'


def make(
    root: Path,
    *,
    run_id: str = "20261121-0203-calm-heron",
    names: tuple[str, ...] = tuple(STAGES),
    failed: str = "",
    steps: int = 0,
    finish: bool = True,
) -> Run:
    """A run of the stages of those names; `failed` stops there; `steps` overrides series."""
    store = Store(root)
    run = Run(store, run_id)
    run.folder.mkdir(parents=True)
    resolved = {
        "name": "quickstart",
        "seed": 0,
        "stages": {n: {k: v for k, v in STAGES[n].items() if k != "kind"} for n in names},
    }
    (run.folder / "run.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    plan = [_planned(name) for name in names]
    (run.folder / "plan.json").write_text(json.dumps({"pipeline": "quickstart", "stages": plan}))
    run.append("run.created", pipeline="quickstart", store=str(root), origin=None)
    keys = ("name", "uses", "kind", "verdict", "reason", "fingerprint")
    run.append("plan", stages=[{key: stage[key] for key in keys} for stage in plan])
    run.append("run.started", pid=1, host="calm")
    for name in names:
        if name == failed:
            context = begin(run, name)
            write_series(context, name, 40)
            message = f"3 losses in a row were not finite {HOSTILE}"
            remedy = "lower train.lr"
            run.append(
                "stage.failed", stage=name, error=message, remedy=remedy, **{"class": "error"}
            )
            run.append("run.finished", state="failed")
            return run
        publish(run, name, steps)
    if finish:
        run.append("run.finished", state="finished")
    return run


def begin(run: Run, name: str) -> Context:
    """Start a stage; its context."""
    fingerprint = print_of(name)
    run.append("stage.started", stage=name, attempt=1, fingerprint=fingerprint)
    work = run.store.work(STAGES[name]["uses"], fingerprint)
    attempt = run.attempt_dir(name, 1)
    return Context(work, attempt, run.cancel_file, run.store.root / "cache", run.id, name)


def publish(run: Run, name: str, steps: int = 0, context: Context | None = None) -> Artifact:
    """Do a stage's work, publish what it made, and journal that."""
    if context is None:
        context = begin(run, name)
        own = STAGES[name].get("train", {}).get("steps", STAGES[name].get("iterations", 0))
        write_series(context, name, own and (steps or own))
    (context.out / "data.bin").write_bytes(random.Random(name).randbytes(2000))
    for panel in panels_of(name):
        context.panel(panel)
    context.result(**results_of(name))
    return commit(run, name)


def commit(run: Run, name: str) -> Artifact:
    planned = _planned(name)
    inputs = {
        parent: found
        for parent in EDGES[name]
        if (found := run.store.find(STAGES[parent]["uses"], print_of(parent)))
    }
    artifact = run.store.publish(
        PublishRequest(
            STAGES[name]["uses"],
            print_of(name),
            kind=STAGES[name]["kind"],
            version=1,
            payload=planned["payload"],
            inputs=inputs,
            run={"id": run.id, "stage": name, "attempt": 1},
            seconds=3.5 + 7.0 * len(name),
            code={"commit": "c" * 40, "dirty": False, "source_hash": "5a" * 32},
        )
    )
    run.append(
        "stage.finished",
        stage=name,
        fingerprint=print_of(name),
        digest=artifact.digest,
        seconds=artifact.manifest["seconds"],
        metrics=artifact.metrics,
    )
    return artifact


def print_of(name: str) -> str:
    return f"{sum(map(ord, name)):016x}"


def _planned(name: str) -> dict[str, Any]:
    stage = STAGES[name]
    execution = ("uses", "kind", "workers")
    params = {key: value for key, value in stage.items() if key not in execution}
    return {
        "name": name,
        "uses": stage["uses"],
        "kind": stage["kind"],
        "verdict": "run",
        "reason": "nothing made it yet",
        "fingerprint": print_of(name),
        "needs": EDGES[name],
        "inputs": {p: [{"stage": p, "uses": STAGES[p]["uses"]}] for p in EDGES[name]},
        "payload": {
            "format": 1,
            "stage": stage["uses"],
            "version": 1,
            "params": params,
            "inputs": {p: [print_of(p)] for p in EDGES[name]},
            "externals": {"python:docs": "ab" * 32} if name == "clean" else {},
        },
    }


def results_of(name: str) -> dict[str, float]:
    return {
        "clean": {"documents": 14210, "kept_share": 0.563},
        "evaluate": {"perplexity": 18.4, "perplexity_sft": 17.9, "reward_gain": 1.31},
        "reward": {"accuracy": 0.812, "loss": 0.44},
        "ppo": {"reward": 1.74, "kl": 0.21},
    }.get(name, {"loss": 2.9 + len(name) / 10})


def write_series(
    context: Context, name: str, steps: int, start: int = 0, stop: int | None = None
) -> None:
    for step, values in itertools.islice(points(name, steps), start, stop) if steps else ():
        context.metrics(step, values)


def points(name: str, steps: int) -> Iterator[tuple[int, dict[str, float]]]:
    noise = random.Random(name)
    for step in range(steps):
        part = step / max(steps, 1)
        if name == "ppo":
            yield (
                step,
                {
                    "reward": 2.1 * (1 - math.exp(-3 * part)) - 0.3 + noise.gauss(0, 0.12),
                    "kl": 0.32 * part**0.7 + abs(noise.gauss(0, 0.015)),
                    "entropy": 3.1 - 0.8 * part + noise.gauss(0, 0.03),
                },
            )
            continue
        values = {
            "loss": 2.6 + 5.6 * math.exp(-6 * part) + noise.gauss(0, 0.07),
            "lr": 1e-3 * min(1, step / 20) * (0.55 + 0.45 * math.cos(math.pi * part)),
            "grad_norm": 0.6 + 2 * math.exp(-9 * part) + abs(noise.gauss(0, 0.08)),
            "tokens_per_second": 21000 + noise.gauss(0, 700),
            "step_seconds": 0.39,
            "tokens": 8192.0 * (step + 1),
            "flops": 8192.0 * (step + 1) * 5.1e6,
        }
        if step % 25 == 24:
            values["eval_loss"] = 2.75 + 5.5 * math.exp(-6 * part)
        yield step, values


def panels_of(name: str) -> list[panels.Panel]:
    if name == "clean":
        steps = [
            ("read", 25240),
            ("language", -310),
            ("too short", -4821),
            ("repetition", -1210),
            ("too many symbols", -644),
            ("exact duplicates", -2904),
            ("near duplicates", -1141),
            ("kept", 14210),
        ]
        return [
            panels.waterfall("What the rules took away", "documents", steps),
            panels.histogram(
                "Length of a document",
                [0, 50, 100, 200, 400, 800, 1600, 3200],
                [210, 1400, 5200, 4100, 2400, 700, 200],
                thresholds=[100],
            ),
            panels.table(
                "Sources",
                ["source", "documents", "characters"],
                [["stdlib", 9120, 8123456], ["site-packages", 5090, 4098765]],
            ),
        ]
    if name == "ppo":
        return [
            panels.curve("Reward", ["reward"]),
            panels.curve("KL to the SFT policy", ["kl"], unit="nats a response"),
            panels.samples(
                "Before and after",
                [
                    {
                        "prompt": "What does `pathlib.Path.glob` do?",
                        "before": "It is a function of the path the path path.",
                        "after": "Iterate over this subtree and yield all existing files that "
                        "match the given pattern.",
                    },
                    {
                        "prompt": "What does `os.replace` do?",
                        "before": HOSTILE,
                        "after": "Renames.",
                    },
                ],
            ),
        ]
    if name == "evaluate":
        values = {"base": 0.02, "sft": 0.61, "sft + speaker": 0.66, "ppo": 1.31, "shuffled": -0.4}
        return [panels.bars("Mean reward on held-out prompts", values)]
    if "train" in STAGES[name]:
        return [
            panels.curve("Loss", ["loss", "eval_loss"], unit="nats a token"),
            panels.curve("Learning rate", ["lr"]),
            panels.curve("Gradient norm", ["grad_norm"], log_y=True),
        ]
    return []
