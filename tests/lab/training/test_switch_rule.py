"""The rule that ends a prefix by its alignment, against loops written by hand."""

import itertools

import numpy as np
import optax
import pytest
from hand_written import by_hand
from tiny_runs import RANK, RATE, rows_of, tiny

import bulk_sgd
from bulk_sgd.lab.training import train

SOLVER = bulk_sgd.lanczos(1e-5, 200)


def running(numbers, decay):
    """Their moving averages from zero."""
    step = lambda average, x: decay * average + (1 - decay) * x
    return list(itertools.accumulate(numbers, step, initial=0.0))[1:]


@pytest.fixture(scope="module")
def alignments():
    """χ of the updates of a prefix."""
    subspace = bulk_sgd.scale_by_subspace(RANK, solver=SOLVER)
    trace = by_hand(tiny(), optax.chain(subspace, optax.sgd(RATE)), 3)
    return [alignment for _, alignment, _ in trace]


def test_switch_by_alignment_forks_at_the_step_that_exceeds_it(alignments, tmp_path):
    averages = running(alignments, 0.5)
    # A threshold between two values, reached at neither an evaluation nor the end.
    expected = 3
    assert averages[expected - 1] > max(averages[: expected - 1])
    threshold = (averages[expected - 1] + max(averages[: expected - 1])) / 2
    changes = {"switch__alignment": threshold, "switch__decay": 0.5}
    result = train.train_and_evaluate(
        tiny(switch__step=15, **changes), tmp_path / "by_alignment"
    )
    assert result["switch"]["step"] == expected
    assert "average alignment" in result["switch"]["reason"]
    assert rows_of(tmp_path / "by_alignment", "sgd")[0]["step"] == expected
    result = train.train_and_evaluate(
        tiny(switch__step=2, **changes), tmp_path / "fallback"
    )
    assert result["switch"] == {"step": 2, "reason": "step 2"}


@pytest.mark.slow
def test_switch_by_the_full_gradient_counts_measured_steps_alone(tmp_path):
    subspace = bulk_sgd.scale_by_subspace(RANK, solver=SOLVER, refresh_every=2)
    trace = by_hand(tiny(), optax.chain(subspace, optax.sgd(RATE)), 7)
    averages = running([chi for _, _, chi in trace[::2]], 0.5)
    threshold = (max(averages[:3]) + averages[3]) / 2
    assert max(averages[:3]) < threshold - 1e-3
    changes = {"switch__gradient": "full", "switch__measure_every": 2}
    changes |= {"switch__alignment": threshold, "switch__decay": 0.5}
    result = train.train_and_evaluate(tiny(switch__step=15, **changes), tmp_path)
    assert result["switch"]["step"] == 7
    assert "of the full gradient" in result["switch"]["reason"]


def test_switch_on_the_last_step_of_a_dispatch_is_no_divergence(alignments, tmp_path):
    # The average still rises over the first steps: put the threshold under the third.
    averages = running(alignments, 0.9)
    assert averages == sorted(averages)
    threshold = float(np.mean(averages[-2:]))
    config = tiny(switch__step=15, switch__alignment=threshold, eval_every=3)
    result = train.train_and_evaluate(config, tmp_path)
    assert result["status"] == result["prefix"]["status"] == "complete"
    assert result["switch"]["step"] == 3
    assert [row["step"] for row in rows_of(tmp_path, "prefix")] == [0, 3]
