"""Artifacts and unfinished work of made-up stages, for the tests of the store."""

from __future__ import annotations

from typing import Any

from pipeline.context import Context
from pipeline.storage.artifact import Artifact
from pipeline.storage.store import PublishRequest, Store

A, B, C, D = ("a" * 16, "b" * 16, "c" * 16, "d" * 16)


def work(store: Store, uses: str, fp: str, text: str = "hello") -> Context:
    folder = store.work(uses, fp)
    context = Context(folder, folder / "log", folder / "cancel", store.root / "cache")
    (context.out / "data.txt").write_text(text)
    context.metrics(1, {"loss": 2.0})
    context.result(loss=2.0)
    return context


def publish(store: Store, uses: str, fp: str, *inputs: Artifact, **options: Any) -> Artifact:
    if not (store.work(uses, fp) / "out").exists():
        work(store, uses, fp)
    return store.publish(
        PublishRequest(
            uses,
            fp,
            kind="Text",
            version=1,
            payload={"stage": uses},
            inputs={"texts": inputs},
            run={"id": "r", "stage": uses, "attempt": 1},
            seconds=1.5,
        ),
        **options,
    )


def damage(artifact: Artifact) -> None:
    """Other bytes of the same length."""
    (artifact.path / "data.txt").write_text("jello")
