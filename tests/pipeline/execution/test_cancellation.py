"""Requests to stop, from signals and from the cancel file."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from faulty_disk import out_of_descriptors

from pipeline.execution.cancellation import POLL_INTERVAL, CancellationToken


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cancel"


def send(number: signal.Signals) -> None:
    """To this process; the handler runs before this returns."""
    signal.raise_signal(number)


def test_no_request(file: Path) -> None:
    stop = CancellationToken(file, 9)
    assert not stop.requested
    assert not stop.expired()
    assert not stop.reason


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_asks_and_tells_the_stages(file: Path, number: signal.Signals) -> None:
    stop = CancellationToken(file, 9)
    with stop.handle_signals():
        send(number)
    assert stop.requested
    assert not stop.expired()
    assert stop.reason == "interrupted"
    assert file.read_text() == "interrupt\n"


def test_an_unreadable_file_is_no_request(file: Path) -> None:
    stop = CancellationToken(file, 9)
    file.write_text("cancel\n")
    with out_of_descriptors():
        assert not stop.requested
    assert stop.requested


def test_two_signals_mean_now(file: Path) -> None:
    stop = CancellationToken(file, 9)
    with stop.handle_signals():
        send(signal.SIGINT)
        send(signal.SIGINT)
    assert stop.expired()
    assert stop.requested


def test_the_grace_ends(file: Path) -> None:
    stop = CancellationToken(file, 0.0)
    with stop.handle_signals():
        send(signal.SIGINT)
    assert stop.requested
    assert stop.expired()
    assert not stop.expired(60)


@pytest.mark.parametrize(
    ("word", "reason", "now"),
    [
        ("cancel\n", "cancelled", False),
        ("cancel now\n", "cancelled", True),
        ("interrupt\n", "interrupted", False),
        ("", "interrupted", False),
    ],
)
def test_the_cancel_file_asks(file: Path, word: str, reason: str, now: bool) -> None:
    stop = CancellationToken(file, 9)
    file.write_text(word)
    assert stop.requested
    assert stop.reason == reason
    assert stop.expired() is now


def test_now_may_be_added_later(file: Path) -> None:
    stop = CancellationToken(file, 9)
    file.write_text("cancel\n")
    assert stop.requested
    assert not stop.expired()
    file.write_text("cancel now\n")
    assert stop.requested
    assert stop.expired()


def test_the_first_reason_stays(file: Path) -> None:
    stop = CancellationToken(file, 9)
    file.write_text("cancel\n")
    assert stop.requested
    with stop.handle_signals():
        send(signal.SIGINT)
    assert stop.requested
    assert stop.reason == "cancelled"


def test_a_folder_that_cannot_be_written_still_stops(tmp_path: Path) -> None:
    stop = CancellationToken(tmp_path / "gone" / "cancel", 9)
    with stop.handle_signals():
        send(signal.SIGTERM)
    assert stop.requested


def test_handlers_come_back(file: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with CancellationToken(file, 9).handle_signals():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_signals_are_handled_in_the_main_thread_only(file: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def body() -> None:
        with CancellationToken(file, 9).handle_signals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_start_is_broken_off_at_once(file: Path) -> None:
    stop = CancellationToken(file, 9)
    with stop.handle_signals():
        with stop.interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(30)
            pytest.fail("the start went on")
        assert stop.requested
        assert not stop.expired()


def test_a_start_is_broken_off_by_another_shell(file: Path) -> None:
    stop = CancellationToken(file, 9)
    other = threading.Timer(3 * POLL_INTERVAL, file.write_text, ["cancel\n"])
    other.start()
    with stop.handle_signals():
        with stop.interruptible():
            threading.Event().wait(30)
            pytest.fail("the start went on")
        assert stop.requested
    assert stop.reason == "cancelled"
    other.join()


def test_a_start_in_another_thread_goes_on(file: Path) -> None:
    stop = CancellationToken(file, 9)
    file.write_text("cancel\n")
    went_on: list[bool] = []

    def body() -> None:
        with stop.interruptible():
            went_on.append(True)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert went_on


def test_a_long_call_without_a_request_continues(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.execution.cancellation.POLL_INTERVAL", 0.001)
    stop = CancellationToken(file, 9)
    with stop.interruptible():
        threading.Event().wait(0.1)
    assert not stop.requested


def test_a_start_that_turns_the_signal_into_an_exit_is_no_exit(file: Path) -> None:
    stop = CancellationToken(file, 9)
    with stop.interruptible():
        raise SystemExit(1)
    assert stop.requested
