"""The most memory that a call takes: its own growth and all processes below this one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")
STEP = 0.2  # seconds between looks


def peak(call: Callable[[], T], *, newcomers: bool = False) -> tuple[T, float]:
    """What the call returns, and MiB (proportional set size, so that shared pages count once).

    Args:
        newcomers: count only processes that the call starts; else those too that were there
            before, a Ray instance and its workers for example.
    """
    me = psutil.Process()
    before = {process.pid for process in me.children(recursive=True)} if newcomers else set()
    own, most, done = _held(me), 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(STEP):
            below = [p for p in me.children(recursive=True) if p.pid not in before]
            most = max(most, _held(me) - own + sum(map(_held, below)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        return call(), most
    finally:
        done.set()
        thread.join()


def _held(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss) / 2**20
    except psutil.Error:
        return 0.0
