from __future__ import annotations

import threading
import time

import pytest

from stagecast.transfer.limit import SMOOTHNESS, Bucket, RateLimit


def test_bytes_that_fit_the_rate_wait_for_nothing() -> None:
    bucket = Bucket(rate=1000, level=0, since=5).less(1000, now=6)

    assert bucket.wait(now=6) == pytest.approx(1 - SMOOTHNESS)
    assert bucket.wait(now=7) == 0


def test_bytes_beyond_the_rate_wait_as_long_as_they_take() -> None:
    bucket = Bucket(rate=1000, level=0, since=0).less(500, now=0).less(1500, now=0)

    assert bucket.wait(now=0) == pytest.approx(2)
    assert bucket.wait(now=1.5) == pytest.approx(0.5)
    assert bucket.wait(now=2) == 0


def test_a_pause_is_not_made_up_for_by_a_burst() -> None:
    bucket = Bucket(rate=1000, level=0, since=0).at(now=3600)

    assert bucket.level == pytest.approx(1000 * SMOOTHNESS)


def test_a_clock_that_steps_back_changes_nothing() -> None:
    bucket = Bucket(rate=1000, level=-1000, since=10)

    assert bucket.at(now=3) == bucket


def test_a_portion_is_small_against_the_rate_and_never_empty() -> None:
    assert RateLimit(20_000_000).portion(1 << 20) == 1_000_000
    assert RateLimit(1e12).portion(1 << 20) == 1 << 20
    assert RateLimit(1).portion(1 << 20) == 1


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_that_moves_nothing_is_refused(rate: int) -> None:
    with pytest.raises(ValueError, match="moves nothing"):
        RateLimit(rate)
    with pytest.raises(ValueError, match="moves nothing"):
        RateLimit(1).rate = rate


def test_a_new_rate_is_in_force_for_those_who_wait_already() -> None:
    limit, stop = RateLimit(1), threading.Event()
    waiting = threading.Thread(target=limit.take, args=(1000, stop))
    waiting.start()

    limit.rate = 1_000_000

    waiting.join(10)
    assert not waiting.is_alive()


def test_a_stop_ends_the_wait() -> None:
    limit, stop = RateLimit(1), threading.Event()
    waiting = threading.Thread(target=limit.take, args=(1_000_000, stop))
    waiting.start()

    stop.set()

    waiting.join(10)
    assert not waiting.is_alive()


def test_all_threads_together_keep_the_rate() -> None:
    limit, stop = RateLimit(1_000_000), threading.Event()

    def take() -> None:
        for _ in range(10):
            limit.take(10_000, stop)

    began = time.monotonic()
    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert time.monotonic() - began >= 0.4 - SMOOTHNESS - 0.01
