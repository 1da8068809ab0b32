"""What happened in a run, in sentences that follow from its numbers."""

import math

import numpy as np

from bulk_sgd.lab.report.formatting import chi, exact, number, percent
from bulk_sgd.lab.report.results import BULK_SGD, DOM_SGD, PREFIX, SGD, RunResults

_LEVEL = 0.05  # a relative decrease of the loss that counts as none


def state(run: RunResults) -> list[str]:
    """What a reader must know before reading on; empty if the run is complete."""
    status = str(run.info.get("status") or "unknown")
    notes = []
    if status != "complete":
        arms = [run.summary(name) for name in (PREFIX, *run.arms)]
        reached = [f"{s.label}: {s.status}, step {s.last_step:,}" for s in arms]
        status += ", or killed" if status == "running" else ""
        if run.info.get("reason"):
            status += f": {run.info['reason']}"
        notes.append(
            f"This run is not complete ({status}); the report shows what there is. "
            f"{'; '.join(reached)}."
        )
    if run.unreadable:
        notes.append(f"Unreadable lines in metrics.jsonl, left out: {run.unreadable}.")
    return notes + run.doubts


def happened(run: RunResults) -> list[str]:
    """What happened in the run, one sentence per fact."""
    begun = [a for a in run.arms if any(run.steps(a) > (run.fork_step or 0))]
    arms = [run.summary(arm) for arm in begun]
    sgd = next((arm for arm in arms if arm.method == SGD), None)
    waiting = [run.summary(arm).label for arm in run.arms if arm not in begun]
    sentences = [
        _prefix(run),
        _without_subspace(run, arms),
        _with_empty_subspace(run, arms),
        *(_arm(run, arm, sgd) for arm in arms),
        f"Nothing logged after the fork: {', '.join(waiting)}." if waiting else "",
        _shares(run, arms),
        _energy(run, sgd),
        _sharpness(run, arms),
    ]
    return [sentence for sentence in sentences if sentence]


def _prefix(run):
    _, losses = run.logged(PREFIX, "train_loss")
    sentence = f"The prefix ran for {run.summary(PREFIX).last_step:,} steps"
    if losses.size:
        ends = f"from {number(losses[0])} to {number(losses[-1])}"
        sentence += f" and took the training loss {ends}"
    if (run.info.get("prefix") or {}).get("status") == "diverged":
        return f"{sentence}; it diverged, so there are no arms."
    if run.fork_step is None:
        return f"{sentence}; it has not forked, so there are no arms."
    return f"{sentence}. The arms forked off at {run.fork_text}."


def _arm(run, arm, sgd):
    """Where an arm ended, against the loss at the fork and against SGD."""
    steps, losses = run.logged(arm.name, "train_loss")
    if not losses.size:
        return f"{arm.label} ({arm.status}) has no finite training loss."
    facts = []
    if math.isfinite(arm.loss_ratio):
        facts.append(f"{number(arm.loss_ratio)} times the loss at the fork")
    if sgd and arm.name != sgd.name and "diverged" not in (arm.status, sgd.status):
        step, (mine, theirs) = _last_common(run, [arm, sgd])
        if step is not None and theirs > 0:
            ratio, loss = number(mine / theirs), number(theirs)
            facts.append(f"{ratio} times SGD's {loss} at step {step:,}")
    end = f"{number(losses[-1])} at step {steps[-1]:,}"
    sentence = f"{arm.label} ({arm.status}) took the training loss to {end}"
    return ", ".join([sentence, *facts]) + "."


def _shares(run, arms):
    """The part of SGD's decrease that each half of its steps achieved alone."""
    usable = lambda arm: arm.status != "diverged" and not _is_blind(run, arm)
    found = {arm.method: arm for arm in reversed(arms) if usable(arm)}
    methods = SGD, DOM_SGD, BULK_SGD
    if not {*methods} <= found.keys():
        return ""
    step, losses = _last_common(run, [found[method] for method in methods])
    if step is None:
        return ""
    decreases = run.fork_loss - np.array(losses)
    if not decreases[0] > _LEVEL * abs(run.fork_loss):
        return "SGD itself hardly lowered the loss after the fork."
    dom, bulk = decreases[1:] / decreases[0]
    verdict = "neither part alone tells the whole story"
    if dom <= 0.25 and bulk >= 0.75:
        verdict = "the flat directions did the training"
    elif bulk <= 0.25 and dom >= 0.75:
        verdict = "the sharp directions did the training"
    elif min(dom, bulk) >= 0.75:
        verdict = "either part alone was nearly enough"
    return (
        f"Of SGD's decrease of the loss from the fork to step {step:,}, Dom-SGD "
        f"achieved {percent(dom)} and Bulk-SGD {percent(bulk)}: {verdict}."
    )


def _energy(run, sgd):
    """How much of SGD's updates lay in the subspace: mean χ, and the mean of χ²."""
    if sgd is None or not math.isfinite(sgd.alignment):
        return ""
    share = np.mean(run.after_fork(sgd.name, "alignment_update") ** 2)
    total, where = run.info.get("num_params"), "the dominant subspace"
    if total and run.rank:
        where = f"{run.rank} of {total:,} dimensions"
    mean = f"a mean {chi(run.rank)} of {number(sgd.alignment)}"
    length = f"{percent(share)} of their squared length lay in {where}"
    return f"SGD's updates after the fork had {mean}: {length}."


def _sharpness(run, arms):
    known = [arm for arm in arms if math.isfinite(arm.sharpness_ratio)]
    if not known:
        return ""
    stable = (
        f", stable below {exact(run.stability)}" if math.isfinite(run.stability) else ""
    )
    listed = ", ".join(f"{number(a.sharpness_ratio)} ({a.label})" for a in known)
    return f"Last sharpness ηλ₁{stable}: {listed}."


def _is_blind(run, arm):
    """Whether refreshes failed and none ever gave the arm a subspace."""
    return arm.failed_refreshes > 0 and not run.logged(arm.name, "kept")[1].size


def _without_subspace(run, arms):
    blind = [arm.label for arm in arms if _is_blind(run, arm)]
    text = (
        f"Every refresh failed, so no subspace was ever found: {', '.join(blind)}. "
        "What follows about them says nothing of sharp and flat directions; more "
        "matvecs or a larger tolerance may help."
    )
    return text if blind else ""


def _with_empty_subspace(run, arms):
    """Where no vector was in the subspace, as with a threshold above λ₁."""
    kept = {arm.label: run.after_fork(arm.name, "kept") for arm in arms}
    empty = [
        f"{np.sum(values == 0):,} of {values.size:,} ({label})"
        for label, values in kept.items()
        if np.any(values == 0)
    ]
    text = "Rows with an empty subspace, where the whole update is bulk: "
    return f"{text}{', '.join(empty)}." if empty else ""


def _last_common(run, arms):
    """The last step after the fork with a finite loss of all `arms`; the losses."""
    tables = [dict(zip(*run.logged(arm.name, "train_loss"))) for arm in arms]
    common = set.intersection(*map(set, tables))
    step = max((s for s in common if s > (run.fork_step or 0)), default=None)
    return step, [table.get(step) for table in tables]
