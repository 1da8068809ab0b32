"""How one arm of a run fared, in numbers that are comparable between runs.

With L the training loss and a fork at L_0 from which SGD reaches L_SGD < L_0, an arm
that ends at L has

  train loss     L
  loss ratio     L / L_0
  progress       (L_0 − L) / (L_0 − L_SGD), the share of SGD's decrease
  speed-up       steps that SGD took to 90 % of its decrease over those that the arm
                 took to the same loss; 0 where the arm never got there
  sharpness      η λ_1 at its end

An arm that diverged has a speed-up of 0 and a stable rate, and no other number. No
number depends on times, so an interrupted sweep gives the same numbers as an
undisturbed one.
"""

import math

import numpy as np

from bulk_sgd.lab.report.results import SGD, RunResults, last_finite

# The share of SGD's decrease where speed is compared: SGD's last loss is passed late,
# and by chance.
TARGET = 0.9


def outcome(run: RunResults, arm: str) -> dict[str, float]:
    """The numbers of an arm by name; NaN for what is not known.

    `batch_sharpness` is multiplied by η, `stable_ratio` is divided by SGD's, and
    `diverged` is 0 or 1. `own/NAME` is the last finite value of the user's function.
    """
    summary, arms = run.summary(arm), run.info.get("arms") or {}
    # No arm begins from a prefix that diverged.
    lost = (run.info.get("prefix") or {}).get("status") == "diverged"
    diverged = lost or summary.status == "diverged"
    loss, fork = summary.train_loss, run.fork_loss
    sgd = run.summary(SGD) if SGD in run.arms else None
    reached = sgd.train_loss if sgd and sgd.status == "complete" else math.nan
    decrease = fork - reached if reached < fork else math.nan
    target = fork - TARGET * decrease
    batch = run.rates(arm) * run.series(arm, "batch_sharpness")
    found = {
        "train_loss": loss,
        "loss_ratio": _ratio(loss, fork),
        "progress": _ratio(fork - loss, decrease),
        "speed_up": _speed_up(run, arm, target, "steps"),
        "matvec_speed_up": _speed_up(run, arm, target, "matvecs"),
        "test_accuracy": summary.test_accuracy,
        "alignment": summary.alignment,
        "gradient_energy": _mean(run.after_fork(arm, "alignment_gradient") ** 2),
        "descent_ratio": _mean(run.after_fork(arm, "descent_ratio")),
        "sharpness_ratio": summary.sharpness_ratio,
        "batch_sharpness": last_finite(batch),
        **{key: last_finite(run.series(arm, key)) for key in run.own},
    }
    if summary.status != "complete":
        found = dict.fromkeys(found, math.nan)
    if diverged:  # it got nowhere
        found |= {"speed_up": 0.0, "matvec_speed_up": 0.0}
    rate = _stable(arms.get(arm, {}))
    ratio = _ratio(rate, _stable(arms.get(SGD, {})))
    found |= {"stable_rate": rate, "stable_ratio": ratio, "diverged": float(diverged)}
    ended = diverged or summary.status == "complete"
    return found if ended else dict.fromkeys(found, math.nan)


def _mean(values):
    return float(values.mean()) if values.size else math.nan


def _stable(entry):
    """The largest stable rate, the middle on a log scale; NaN where a bound is open."""
    low, high = entry.get("stable_rate"), entry.get("unstable_rate")
    return math.sqrt(low * high) if low and high else math.nan


def _speed_up(run, arm, target, unit):
    if math.isnan(target):
        return math.nan
    theirs, ours = (_first_reach(run, name, target, unit) for name in (SGD, arm))
    # Without a subspace, SGD takes no matvecs to compare with.
    return 0.0 if math.isnan(ours) else _ratio(theirs or math.nan, ours)


def _first_reach(run, arm, target, unit):
    """Steps (or matvecs) from the fork until the loss is at `target`, or NaN."""
    counts = run.series(arm, "matvecs") if unit == "matvecs" else run.steps(arm)
    counts = np.asarray(counts, float) - counts[0] if len(counts) else counts
    return reach(run.series(arm, "train_loss"), counts, target)


def reach(losses: np.ndarray, counts: np.ndarray, target: float) -> float:
    """The count where losses first reach `target`, linear between rows; or NaN."""
    below = np.flatnonzero(losses <= target)
    if not below.size:
        return math.nan
    i = below[0]
    if i == 0:
        return float(counts[0])
    part = (losses[i - 1] - target) / (losses[i - 1] - losses[i])
    return float(counts[i - 1] + part * (counts[i] - counts[i - 1]))


def _ratio(above, below):
    return above / below if below else math.nan
