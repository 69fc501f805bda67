"""Who is stuck, by a clock that the test moves."""

from stages.training.ranks.watchdog import Watchdog, WatchdogSection


class Scene:
    """A group whose ranks show themselves as told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.dog = Watchdog(
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
        """Let time go by, while these ranks show their counters twice a second; one `waits`."""
        for _ in range(int(seconds * 2)):
            self.now += 0.5
            for rank in ranks:
                self.dog.report(rank, counts[rank], int(self.now * 2) * (rank == waits), step)


def test_starting_may_take_long() -> None:
    scene = Scene()
    scene.pass_time(99, 0, 1, counts=(0, 0), step=0)
    assert scene.dog.stall() == ""
    scene.pass_time(3, 0, 1, counts=(0, 0), step=0)
    assert scene.dog.stall() == "ranks 0, 1 made no progress for 102 s"


def test_short_steps_are_allowed_the_floor() -> None:
    scene = Scene()
    scene.pass_time(1, 0, 1, counts=(5, 5), step=0.1)
    scene.pass_time(19, 0, 1, counts=(5, 5), step=0.1)
    assert scene.dog.stall() == ""
    scene.pass_time(2, 0, 1, counts=(5, 5), step=0.1)
    assert scene.dog.stall()


def test_long_steps_are_allowed_some_of_their_own() -> None:
    scene = Scene()
    scene.pass_time(1, 0, 1, counts=(5, 5), step=9)
    scene.pass_time(89, 0, 1, counts=(5, 5), step=9)
    assert scene.dog.stall() == ""
    scene.pass_time(2, 0, 1, counts=(5, 5), step=9)
    assert scene.dog.stall()


def test_the_rank_behind_is_blamed_not_its_peers() -> None:
    scene = Scene()
    scene.pass_time(1, 0, 1, counts=(8, 7), step=0.1)
    scene.pass_time(21, 0, 1, counts=(8, 7), step=0.1)
    assert scene.dog.stall() == "rank 1 made no progress for 22 s"


def test_a_rank_that_shows_nothing_is_blamed_first() -> None:
    scene = Scene()
    scene.pass_time(1, 0, 1, counts=(7, 8), step=0.1)
    scene.pass_time(21, 0, counts=(7, 8), step=0.1)
    assert scene.dog.stall() == "rank 1 made no progress for 22 s and does not answer"


def test_one_rank_that_works_does_not_hide_one_that_does_not() -> None:
    scene = Scene()
    for count in range(60):
        scene.pass_time(0.5, 0, 1, counts=(count, min(count, 3)), step=0.1)
    assert "rank 1" in scene.dog.stall()


def test_progress_ends_the_suspicion() -> None:
    scene = Scene()
    scene.pass_time(21, 0, 1, counts=(1, 1), step=0.1)
    scene.pass_time(1, 0, 1, counts=(2, 2), step=0.1)
    assert scene.dog.stall() == ""


def test_a_rank_that_has_answered_may_rest() -> None:
    """Rank 0 works alone for long after its peer is done: neither is stuck."""
    scene = Scene()
    scene.pass_time(1, 0, 1, counts=(1, 1), step=0)
    scene.dog.release(1)
    for count in range(2, 400):
        scene.pass_time(0.5, 0, 1, counts=(count, 1), step=0)
    assert scene.dog.stall() == ""
    scene.pass_time(101, 0, 1, counts=(399, 1), step=0)
    assert scene.dog.stall() == "rank 0 made no progress for 101 s"
    scene.dog.release(0)
    assert scene.dog.stall() == ""


def test_a_rank_that_waits_where_it_says_so_is_not_stuck_and_its_peer_is_looked_at() -> None:
    scene = Scene()
    scene.pass_time(1, 0, 1, counts=(7, 7), step=0.1)
    for count in range(8, 60):
        scene.pass_time(1, 0, 1, counts=(count, 7), step=0.1, waits=1)
    assert scene.dog.stall() == ""
    scene.pass_time(21, 0, 1, counts=(59, 60), step=0.1, waits=1)
    assert scene.dog.stall() == "rank 0 made no progress for 22 s"


def test_who_waited_more_is_not_thought_to_be_ahead() -> None:
    scene = Scene()
    scene.pass_time(30, 0, 1, counts=(5, 5), step=0.1, waits=0)
    scene.dog.report(1, 5, 0, 0.1)
    scene.pass_time(1, 0, 1, counts=(6, 6), step=0.1)
    scene.pass_time(21, 0, 1, counts=(6, 6), step=0.1)
    assert scene.dog.stall() == "ranks 0, 1 made no progress for 22 s"


def test_a_rank_that_is_stuck_before_it_showed_a_step_is_not_given_the_time_of_a_start() -> None:
    scene = Scene()
    scene.dog.report(1, 2, 0, 0.0)
    scene.pass_time(22, 0, counts=(3, 2), step=0.1)
    assert scene.dog.stall() == "rank 1 made no progress for 22 s and does not answer"
