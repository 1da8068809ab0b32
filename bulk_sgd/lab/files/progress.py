"""A progress bar."""

import contextlib
import sys
import threading

import jax
import tqdm


class Progress(contextlib.AbstractContextManager):
    """A progress bar over all steps of an experiment, with the time left.

    Without a terminal it prints a line every 30 seconds. Only process 0 shows it.
    """

    def __init__(self, total: int | None, enabled: bool = True, unit: str = "step"):
        self.count = 0  # steps so far
        self._bar = tqdm.tqdm(
            total=total,
            unit=unit,
            disable=not enabled or jax.process_index() != 0,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )

    def expect(self, total: int | None):
        """Sets the number of steps once it is known."""
        self._bar.total = total

    def advance(self, steps: int, **facts):
        """Counts steps and shows facts such as the arm and its loss."""
        self.count += steps
        self._bar.update(steps)
        self._bar.set_postfix(facts, refresh=False)

    def skip(self, steps: int):
        """Counts steps that an earlier process took, and leaves them out of rates."""
        self.count += steps
        if not self._bar.disable:
            self._bar.initial += steps
            self._bar.n += steps
            self._bar.refresh()

    @contextlib.contextmanager
    def waiting(self, message: str, patience: float = 5.0):
        """Prints a message if the body takes longer than `patience` seconds."""
        timer = threading.Timer(patience, self.say, [message])
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def say(self, message: str):
        """Prints a line above the bar."""
        if not self._bar.disable:
            self._bar.write(message, file=sys.stderr)

    def close(self):
        """Leaves the bar as it stands."""
        self._bar.close()

    def __exit__(self, *exc):
        self.close()
