"""Detection of stalled ranks, with a clock that the test advances."""

from stages.training.ranks.watchdog import Watchdog, WatchdogSection


class Scene:
    """A group whose ranks report what the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.watchdog = Watchdog(
            range(2),
            WatchdogSection(timeout_factor=10, min_timeout=20, startup_timeout=100),
            lambda: self.now,
        )

    def pass_time(
        self,
        seconds: float,
        *ranks: int,
        counts: tuple[int, int],
        step: float,
        waits: int | None = None,
    ) -> None:
        """Advance the clock, while these ranks report counters twice per second; one `waits`."""
        for _ in range(int(seconds * 2)):
            self.now += 0.5
            for rank in ranks:
                self.watchdog.report(rank, counts[rank], int(self.now * 2) * (rank == waits), step)


def test_starting_has_a_timeout_of_its_own() -> None:
    scene = Scene()
    scene.pass_time(99, 0, 1, counts=(0, 0), step=0)
    assert scene.watchdog.stall() == ""
    scene.pass_time(3, 0, 1, counts=(0, 0), step=0)
    assert scene.watchdog.stall() == "ranks 0, 1 made no progress for 102 s"


def test_short_steps_have_the_minimum_timeout() -> None:
    scene = Scene()
    scene.pass_time(1, 0, 1, counts=(5, 5), step=0.1)
    scene.pass_time(19, 0, 1, counts=(5, 5), step=0.1)
    assert scene.watchdog.stall() == ""
    scene.pass_time(2, 0, 1, counts=(5, 5), step=0.1)
    assert scene.watchdog.stall()


def test_long_steps_have_a_multiple_of_their_time() -> None:
    scene = Scene()
    scene.pass_time(1, 0, 1, counts=(5, 5), step=9)
    scene.pass_time(89, 0, 1, counts=(5, 5), step=9)
    assert scene.watchdog.stall() == ""
    scene.pass_time(2, 0, 1, counts=(5, 5), step=9)
    assert scene.watchdog.stall()


def test_the_rank_behind_is_named_not_its_peers() -> None:
    scene = Scene()
    scene.pass_time(1, 0, 1, counts=(8, 7), step=0.1)
    scene.pass_time(21, 0, 1, counts=(8, 7), step=0.1)
    assert scene.watchdog.stall() == "rank 1 made no progress for 22 s"


def test_a_silent_rank_is_named_first() -> None:
    scene = Scene()
    scene.pass_time(1, 0, 1, counts=(7, 8), step=0.1)
    scene.pass_time(21, 0, counts=(7, 8), step=0.1)
    assert scene.watchdog.stall() == "rank 1 made no progress for 22 s and does not answer"


def test_a_working_rank_does_not_hide_a_stalled_one() -> None:
    scene = Scene()
    for count in range(60):
        scene.pass_time(0.5, 0, 1, counts=(count, min(count, 3)), step=0.1)
    assert "rank 1" in scene.watchdog.stall()


def test_progress_restarts_the_timeout() -> None:
    scene = Scene()
    scene.pass_time(21, 0, 1, counts=(1, 1), step=0.1)
    scene.pass_time(1, 0, 1, counts=(2, 2), step=0.1)
    assert scene.watchdog.stall() == ""


def test_a_rank_that_has_replied_is_not_watched() -> None:
    """Rank 0 works for long after its peer is done: neither is stalled."""
    scene = Scene()
    scene.pass_time(1, 0, 1, counts=(1, 1), step=0)
    scene.watchdog.release(1)
    for count in range(2, 400):
        scene.pass_time(0.5, 0, 1, counts=(count, 1), step=0)
    assert scene.watchdog.stall() == ""
    scene.pass_time(101, 0, 1, counts=(399, 1), step=0)
    assert scene.watchdog.stall() == "rank 0 made no progress for 101 s"
    scene.watchdog.release(0)
    assert scene.watchdog.stall() == ""


def test_a_waiting_rank_is_not_stalled_and_its_peer_is_named() -> None:
    scene = Scene()
    scene.pass_time(1, 0, 1, counts=(7, 7), step=0.1)
    for count in range(8, 60):
        scene.pass_time(1, 0, 1, counts=(count, 7), step=0.1, waits=1)
    assert scene.watchdog.stall() == ""
    scene.pass_time(21, 0, 1, counts=(59, 60), step=0.1, waits=1)
    assert scene.watchdog.stall() == "rank 0 made no progress for 22 s"


def test_waits_do_not_count_as_progress() -> None:
    scene = Scene()
    scene.pass_time(30, 0, 1, counts=(5, 5), step=0.1, waits=0)
    scene.watchdog.report(1, 5, 0, 0.1)
    scene.pass_time(1, 0, 1, counts=(6, 6), step=0.1)
    scene.pass_time(21, 0, 1, counts=(6, 6), step=0.1)
    assert scene.watchdog.stall() == "ranks 0, 1 made no progress for 22 s"


def test_a_rank_stalled_in_its_first_step_has_the_timeout_of_its_peers() -> None:
    scene = Scene()
    scene.watchdog.report(1, 2, 0, 0.0)
    scene.pass_time(22, 0, counts=(3, 2), step=0.1)
    assert scene.watchdog.stall() == "rank 1 made no progress for 22 s and does not answer"
