"""`verify` of intact and corrupt artifacts."""

from __future__ import annotations

from pathlib import Path

import sample_run
from command_calls import Call, parse_json

from pipeline.execution.run import Run


def test_flipped_bit_is_found_and_quarantined(run: Run, call: Call) -> None:
    assert "10 of 10 artifacts are intact" in call("verify").stdout
    folder = Path(parse_json(call("status", "--json"))["stages"][3]["path"])
    data = bytearray((folder / "data.bin").read_bytes())
    data[100] ^= 1
    (folder / "data.bin").write_bytes(data)
    done = call("verify", "--all", code=1)
    assert "data.bin: its bytes changed" in done.stdout
    assert "9 of 10 artifacts are intact" in done.stdout
    assert f"next: headwater resume {run.id} --store" in done.stderr
    assert not folder.exists()
    assert "9 of 9 artifacts are intact" in call("verify", "--all").stdout


def test_verify_one_artifact_as_json(run: Run, call: Call) -> None:
    (line,) = parse_json(call("verify", sample_run.print_of("sft"), "--json"))
    assert (line["uses"], line["problems"]) == ("sft", [])
    assert line["bytes"] > 2000
