"""Tuned sweeps side by side: what rows cost, and the medians over sweeps."""

import json
import math

import numpy as np
import pytest
from written_studies import write_tuned

from bulk_sgd.lab.report import payoff_section, study
from bulk_sgd.lab.report.write import write_report

TUNE = {"field": "optimizer.learning_rate", "reference": "plain"}
PLAIN = {0.1: (0.5, 0.5), 0.2: (0.25, 0.25), 0.4: (0.5, 0.5)}
FAST, FASTER = {0.1: (0.02, 0.02)}, {0.1: (0.002, 0.004)}
SLOW = {0.1: (2.0, 2.0)}


def share(end):
    """Of 40 steps, those to a loss of 0.25, linear between rows of ten steps."""
    losses = 4 * (end / 4) ** (np.arange(5) / 4)
    return np.interp(-0.25, -losses, np.arange(5)) / 4


def write(folder, optimizers):
    """Sweeps of "plain" and others, each with its inner optimizer in the runs."""
    for name, (settings, optimizer) in optimizers.items():
        write_tuned(folder / name, {"plain": PLAIN, **settings}, TUNE)
        for file in (folder / name).glob("cells/*/run.json"):
            info = json.loads(file.read_text())
            info["config"] = {"optimizer": optimizer}
            file.write_text(json.dumps(info))


@pytest.fixture
def found(tmp_path):
    sgd, momentum = ({"name": "sgd", "momentum": x} for x in (0.0, 0.9))
    write(
        tmp_path,
        {
            "cnn": ({"fast": FAST, "slow": SLOW}, sgd),
            "mlp": ({"fast": FAST}, momentum),
            "vit": ({"fast": FASTER, "slow": SLOW}, sgd),
        },
    )
    return payoff_section.sweeps(study.read_study(tmp_path))


def test_sweeps_of_one_optimizer_stand_together(found):
    assert [(sweep.name, sweep.optimizer) for sweep in found] == [
        ("cnn", "sgd"),
        ("vit", "sgd"),
        ("mlp", "sgd, momentum 0.9"),
    ]


def test_medians_are_over_the_sweeps_of_an_optimizer(found):
    fast, slow, other = payoff_section.medians(found)
    one = share(0.02)
    # The other sweep has two seeds, and the median of two is their mean.
    two = (share(0.002) + share(0.004)) / 2
    assert fast == {
        "optimizer": "sgd",
        "row": "fast",
        "sweeps": 2,
        "steps": pytest.approx((one + two) / 2),
        "seconds": pytest.approx((one + two) / 2),
        "test_share": pytest.approx(1),  # always twice the training loss
    }
    assert (slow["row"], slow["sweeps"], slow["steps"]) == ("slow", 2, math.inf)
    assert math.isnan(slow["test_share"])
    assert (other["optimizer"], other["sweeps"]) == ("sgd, momentum 0.9", 1)
    assert other["steps"] == pytest.approx(one)


def test_figure_shows_medians_and_who_never_gets_there(found):
    figure = payoff_section.payoff_figure(found)
    steps, seconds = figure.axes
    labels = [text.get_text() for text in steps.get_yticklabels()]
    assert labels == ["cnn", "vit", "mlp"]
    for axes in (steps, seconds):
        points = [line for line in axes.lines if line.get_marker() == "o"]
        two = (share(0.002) + share(0.004)) / 2
        expected = [share(0.02), two, share(0.02)]
        assert [line.get_xdata()[0] for line in points] == pytest.approx(expected)
        arrows = [line for line in axes.lines if line.get_marker() == ">"]
        assert len(arrows) == 2
        # From the top: cnn's rows, a line, vit's rows, a line, mlp's row.
        assert [line.get_ydata()[0] for line in points] == [1, 4, 7]
        assert [line.get_ydata()[0] for line in arrows] == [2, 5]


def test_a_study_of_several_tuned_sweeps_has_a_section(found, tmp_path):
    page = write_report(tmp_path)
    text = page.read_text()
    assert text.count("<h2>Does it pay?</h2>") == 1
    assert page.with_name("payoff.png").stat().st_size > 10_000
    assert "median of 2 sweeps" in text
    assert "median of 1" not in text
    numbers = json.loads(page.with_name("tables.json").read_text())["payoff"]
    assert [row["row"] for row in numbers] == ["fast", "slow", "fast"]
    assert numbers[0]["steps"] == pytest.approx(
        payoff_section.medians(found)[0]["steps"]
    )
    alone = write_report(tmp_path / "cnn")
    assert "Does it pay?" not in alone.read_text()
