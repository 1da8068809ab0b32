"""The bar, and the lines above it."""

import threading

import pytest
from interruptions import config, interrupt_after

from bulk_sgd.lab.files import progress
from bulk_sgd.lab.training import train


def test_a_long_wait_is_said_and_a_short_one_is_not(capsys):
    said = threading.Event()
    with progress.Progress(3) as bar:
        say, bar.say = bar.say, lambda text: (say(text), said.set())
        with bar.waiting("Compiling", patience=0.01):
            assert said.wait(10)
        assert "Compiling\n" in capsys.readouterr().err
        with bar.waiting("Compiling", patience=60):
            pass
    assert "Compiling" not in capsys.readouterr().err


def test_steps_of_an_earlier_process_are_counted_but_not_timed():
    with progress.Progress(10) as bar:
        bar.skip(8)
        bar.advance(1)
        shown = bar._bar.format_dict
    assert (bar.count, shown["n"], shown["initial"], shown["total"]) == (9, 9, 8, 10)


@pytest.mark.parametrize("dispatches", [2, 7])
def test_bar_of_a_resumed_run(tmp_path, monkeypatch, dispatches):
    """In the prefix of 4 dispatches of 2 steps, and in the first arm of 6."""
    bars = []

    class Kept(progress.Progress):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.skipped = 0
            bars.append(self)

        def skip(self, steps):
            self.skipped += steps
            super().skip(steps)

    monkeypatch.setattr(train, "Progress", Kept)
    with monkeypatch.context() as patch:
        interrupt_after(patch, dispatches)
        with pytest.raises(SystemExit):
            train.train_and_evaluate(config(), tmp_path)
    assert bars[0].skipped == 0
    train.train_and_evaluate(config(), tmp_path)
    assert bars[1].skipped == bars[0].count > 0
    assert bars[1].count == bars[1]._bar.total == 8 + 2 * 12
