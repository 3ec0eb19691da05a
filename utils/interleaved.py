"""Ways to do the same thing, timed in turns: a machine that slows down for a while slows all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def interleaved(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    timed: bool = False,  # whether the ways return their seconds themselves
) -> dict[str, list[float]]:
    """Seconds of each way in each round, after `warm_up` rounds that do not count."""
    seconds = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        for name, run in ways.items():
            start = clock()
            result = run()
            if number >= warm_up:
                seconds[name].append(result if timed else clock() - start)
    return seconds


def rates(amount: float, seconds: Sequence[float]) -> dict[str, float]:
    """How much of `amount` is done in a second: the median over the rounds, the lowest and the highest."""
    return {
        'median': amount / statistics.median(seconds),
        'lowest': amount / max(seconds),
        'highest': amount / min(seconds),
    }
