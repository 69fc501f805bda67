"""Warnings of a plan: epochs over a corpus, and GPUs that this machine does not have."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from command_calls import Call, parse_json

from launch.plan_warnings import local_gpus
from pipeline.context import Context
from pipeline.execution.plan import Plan, PlannedStage, make_plan
from pipeline.spec.spec_checker import load_spec
from pipeline.storage.store import PublishRequest, Store

PIPELINE = """
name: corpora
stages:
  clean: {uses: clean, sources: ["text.txt"]}
  tokenizer: {uses: tokenize.train, documents: "${clean}", vocab_size: 500}
  one: {uses: tokenize.pack, documents: "${clean}", tokenizer: "${tokenizer}"}
  two: {uses: tokenize.pack, documents: "${clean}", tokenizer: "${tokenizer}", seed: 1}
  gpt:
    uses: pretrain
    tokens: ["${one}", "${two}"]
    tokenizer: ${tokenizer}
    model: {context_length: 64}
    train: {steps: 100, global_batch_size: 32}
"""


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("A text. " * 100)
    file = tmp_path / "corpora.yaml"
    file.write_text(PIPELINE.replace("text.txt", str(tmp_path / "text.txt")))
    return file


def planned(file: Path, store: Store, name: str) -> PlannedStage:
    plan: Plan = make_plan(load_spec(file), store)
    return next(stage for stage in plan.stages if stage.name == name)


def publish(store: Store, stage: PlannedStage, **metrics: float) -> None:
    """Publish an artifact of a planned stage with these metrics."""
    work = store.work(stage.uses, stage.fingerprint)
    context = Context(work, store.root / "attempt", store.root / "cancel", store.root / "cache")
    (context.out / "data.bin").write_bytes(random.Random(stage.name).randbytes(100))
    context.result(**metrics)
    facts = {"kind": stage.kind, "version": 1, "payload": stage.payload, "inputs": {}}
    request = PublishRequest(
        stage.uses, stage.fingerprint, **facts, run={"id": "hand"}, seconds=1.0, code={}
    )
    store.publish(request)


def epochs(call: Call, file: Path, *overrides: str) -> list[str]:
    stages = parse_json(call("plan", str(file), *overrides, "--json"))["stages"]
    warnings = next(stage["warnings"] for stage in stages if stage["name"] == "gpt")
    return [warning for warning in warnings if "epochs" in warning]


def test_epochs_over_cached_tokens_are_exact(corpora: Path, store: Store, call: Call) -> None:
    assert epochs(call, corpora) == []
    publish(store, planned(corpora, store, "one"), train_tokens=10_000)
    assert epochs(call, corpora) == []  # the size of the other is not known
    publish(store, planned(corpora, store, "two"), train_tokens=40_000)
    reads = [
        f"4.1 epochs over the {size} tokens of {name}; above 4, repeated text adds little: "
        "lower train.steps, or add text"
        for name, size in (("one", "10,000"), ("two", "40,000"))
    ]
    assert epochs(call, corpora) == reads
    assert epochs(call, corpora, "gpt.train.steps=97") == []
    [one] = epochs(call, corpora, "gpt.mixture={weights: [50, 50]}")
    assert one.startswith("10.2 epochs over the 10,000 tokens of one;")


def test_epochs_over_documents_are_estimated(corpora: Path, store: Store, call: Call) -> None:
    publish(store, planned(corpora, store, "clean"), characters=40_000)
    found = epochs(call, corpora)
    assert [warning[:20] for warning in found] == ["about 10.2 epochs ov"] * 2
    printed = call("plan", str(corpora)).stdout
    assert "warning: gpt: about 10.2 epochs over the 10,000 tokens of one" in printed


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the GPUs, as a machine without any."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_is_not_here_is_found_by_plan_and_refused_by_run(
    corpora: Path, store: Store, call: Call
) -> None:
    message = "requests 1 GPUs per process; the largest node has 0"
    remedy = "set gpt.workers.gpus: 0, or use a cluster with more GPUs"
    for words in (["plan"], ["run", "--dry-run"]):
        printed = call(*words, str(corpora), "gpt.workers.gpus=1").stdout
        assert f"warning: gpt: {message} (this machine): {remedy}" in printed
    refused = call("run", str(corpora), "gpt.workers.gpus=1", code=2).stderr
    assert f"corpora.yaml:8: gpt.workers.gpus: {message} ({remedy})" in refused
    assert not (store.root / "runs").exists()


@pytest.mark.usefixtures("no_gpu")
def test_a_stage_that_declares_its_hardware_is_planned_for_another_machine(
    corpora: Path, call: Call
) -> None:
    words = ["gpt.workers.gpus=1", "gpt.hardware={device: a100-80gb}"]
    assert "GPUs per process" not in call("plan", str(corpora), *words).output


def test_visible_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    names = [path.name for path in Path("/dev").iterdir()]
    devices = sum(name.removeprefix("nvidia").isdigit() for name in names if "nvidia" in name)
    assert local_gpus() in (devices, None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert local_gpus() == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(99))))
    assert local_gpus() == devices
