"""`gc`."""

from __future__ import annotations

from command_calls import Call, parse_json

from pipeline.execution.run import Run
from pipeline.storage.store import Store


def test_gc_deletes_only_with_delete(run: Run, store: Store, call: Call) -> None:
    assert parse_json(call("gc", "--json"))["garbage"] == []
    plan = call("gc", "--keep", "0")
    assert "would free" in plan.stdout
    assert "next: headwater gc --keep 0 --delete" in plan.stderr
    assert len(list(store.folders())) == 10
    assert parse_json(call("gc", "--keep", "0", "--delete", "--json"))["deleted"]
    assert list(store.folders()) == []
