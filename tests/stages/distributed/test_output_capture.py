"""What a process prints, from whatever layer, ends as harmless lines of a log."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.redaction import redact
from stages.distributed.output_capture import (
    LINE_LIMIT,
    StreamRedactor,
    capture_output,
    copy_lines,
)


def lines(log: Path) -> list[str]:
    """Without the time stamps."""
    return [line.split(" ", 1)[1] for line in log.read_text().splitlines()]


def test_python_descriptors_and_children_print_to_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWATER_TEST_TOKEN", "hunter22")
    log = tmp_path / "log.txt"
    before = sys.stdout, sys.stderr
    with capture_output(log, ["HEADWATER_TEST_TOKEN"]):
        print("from python")
        print("to stderr \x1b[2J", file=sys.stderr)
        os.write(1, b"from below\n")
        subprocess.run(["echo", "from a child: hunter22"], check=True)
    assert (sys.stdout, sys.stderr) == before
    assert sorted(lines(log)) == [
        "from a child: ${env:HEADWATER_TEST_TOKEN}",
        "from below",
        "from python",
        "to stderr \\x1b[2J",
    ]


def test_the_streams_come_back_after_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError), capture_output(tmp_path / "log.txt"):
        print("before", end="")
        raise ZeroDivisionError
    print("after", flush=True)
    assert lines(tmp_path / "log.txt") == ["before"]
    assert capfd.readouterr().out == "after\n"


def test_a_child_that_prints_on_does_not_hold_the_stage_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.distributed.output_capture.CLOSE_TIMEOUT", 0.05)
    with capture_output(tmp_path / "log.txt"):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    child.communicate(b"late\n")
    assert child.returncode == 0


def test_last_words_of_a_killed_process_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    program = (
        "import os, sys\nfrom pathlib import Path\n"
        "from stages.distributed.output_capture import capture_output\n"
        "with capture_output(Path(sys.argv[1])):\n"
        "    os.write(2, b'last words\\n'); os.kill(os.getpid(), 9)\n"
    )
    # The copy_lines holds stderr too: when this returns, it has ended.
    ended = subprocess.run([sys.executable, "-c", program, str(log)], stderr=subprocess.PIPE)
    assert ended.returncode == -9
    assert lines(log) == ["last words"]


def test_lines_are_folded_cut_and_decoded(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    raw = b"1%\r50%\r100%\n" + b"x" * (LINE_LIMIT + 3) + b"\n" + b"\xff\xfe\n" + b"no end"
    copy_lines(io.BytesIO(raw), log)
    assert lines(log) == ["100%", "x" * LINE_LIMIT, "xxx", "��", "no end"]


def test_a_log_that_cannot_be_written_does_not_stop_the_writer(tmp_path: Path) -> None:
    source = io.BytesIO(b"one\ntwo\n")
    copy_lines(source, tmp_path / "no folder" / "log.txt")
    assert source.read() == b""


piece = st.text(st.sampled_from('ab<&"\n é'), min_size=4, max_size=9)


@settings(max_examples=60, deadline=None)
@given(
    secrets=st.lists(piece.filter(lambda text: len(text.strip()) > 3), min_size=1, max_size=3),
    between=st.lists(st.text(st.sampled_from("ab\n xyz"), max_size=12), min_size=4, max_size=4),
    size=st.integers(1, 40),
)
def test_no_secret_passes_however_the_text_is_cut(
    secrets: list[str], between: list[str], size: int
) -> None:
    text = "".join(part for pair in zip(between, [*secrets, ""], strict=False) for part in pair)
    names = [f"ORCHARD_{number}" for number in range(len(secrets))]
    with pytest.MonkeyPatch.context() as patch:
        for name, secret in zip(names, secrets, strict=True):
            patch.setenv(name, secret)
        whole, redactor = redact(text, names), StreamRedactor(names)
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        shown = "".join(map(redactor.feed, pieces)) + redactor.feed("", last=True)
    assert shown == whole
    plain = re.sub(r"\$\{env:ORCHARD_\d\}", "\0", shown)
    assert not [secret for secret in secrets if secret in plain]


def test_secrets_across_lines_and_folds_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHARD_KEY", "first row\nab\nsecond <row>")
    log = tmp_path / "log.txt"
    fold = b"x" * (LINE_LIMIT - 5) + b"second <row>"
    copy_lines(
        io.BytesIO(b"> first row\nab\nsecond <row>!\n" + fold + b"\nend"), log, ["ORCHARD_KEY"]
    )
    shown = "".join(lines(log))
    assert shown == "> ${env:ORCHARD_KEY}!" + "x" * (LINE_LIMIT - 5) + "${env:ORCHARD_KEY}end"
