"""The largest stable learning rate, by bisection on a log scale."""

import dataclasses
import math


@dataclasses.dataclass
class Bisection:
    """An interval between a stable and an unstable learning rate.

    The ends of the first interval are tried first: where its low end is unstable or
    its high end stable, the search ends there, and the rate lies outside.

    Args:
      low: low end of the first interval, positive.
      high: its high end.
      rounds: how often it is halved.

    Example:
      >>> from bulk_sgd.lab.training.stability import Bisection
      >>> search = Bisection(0.1, 10.0, rounds=10)
      >>> while search.rate is not None:
      ...     search.answer(search.rate < 2)
      >>> search.stable < 2 <= search.unstable, round(search.stable, 1)
      (True, 2.0)
    """

    low: float
    high: float
    rounds: int
    stable: float | None = None
    unstable: float | None = None

    @property
    def rate(self) -> float | None:
        """The rate to try next, None when the search is over."""
        if self.stable is None and self.unstable is None:
            return self.low
        if self.stable is None:
            return None  # the low end is unstable
        if self.unstable is None:
            return self.high if self.stable == self.low else None
        return math.sqrt(self.stable * self.unstable) if self.rounds else None

    def answer(self, stable: bool):
        """Takes the answer for `rate` into account."""
        rate = self.rate
        if self.stable is not None and self.unstable is not None:
            self.rounds -= 1
        if stable:
            self.stable = rate
        else:
            self.unstable = rate
