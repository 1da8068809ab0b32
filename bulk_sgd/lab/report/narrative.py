"""Says in sentences what happened in a run, every word following from its numbers."""

import math

import numpy as np

from bulk_sgd.lab.report.results import PREFIX, Run, Summary

_LEVEL = 0.05  # Relative difference below which two losses count as equal.


def state(run: Run) -> list[str]:
    """What a reader must know before reading on: empty if the run is complete."""
    status = str(run.info.get("status") or "unknown")
    notes = []
    if status != "complete":
        start = {
            "running": "This run is still going, or was killed",
            "interrupted": "This run was interrupted",
            "failed": "This run failed",
        }.get(status, f"The status of this run is {status}")
        stands = [run.summary(name) for name in (PREFIX, *run.arms)]
        reached = "; ".join(_reached(s) for s in stands)
        notes.append(f"{start}; the report shows what there is. {reached}.")
    if run.unreadable:
        lines = "line" if run.unreadable == 1 else "lines"
        notes.append(
            f"Left out: {run.unreadable:,} unreadable {lines} of metrics.jsonl."
        )
    return notes


def happened(run: Run) -> list[str]:
    """What happened in the run, one sentence per fact."""
    begun = [a for a in run.arms if any(run.steps(a) > (run.switch_step or 0))]
    arms = [run.summary(arm) for arm in begun]
    sgd = next((arm for arm in arms if arm.method == "sgd"), None)
    waiting = [run.summary(arm).label for arm in run.arms if arm not in begun]
    sentences = [
        _prefix(run),
        _blindness(run, arms),
        _emptiness(run, arms),
        *(_arm(run, arm, sgd) for arm in arms),
        f"Nothing logged past the switch by {', '.join(waiting)}." if waiting else "",
        _shares(run, arms, sgd),
        _aligned(run, sgd),
        _sharp(run, arms),
        _failures(arms),
    ]
    return [sentence for sentence in sentences if sentence]


def number(value: float) -> str:
    """Three significant digits; a dash where nothing is known."""
    if not math.isfinite(value):
        return "–"
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def whose(run: Run) -> str:
    """Whose stability threshold it is that the run has."""
    return "SGD" if run.stability == 2 else "the optimizer"


def chi(run: Run) -> str:
    """The alignment's name with the rank of the run below it, such as χ₁₀."""
    digits = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
    return "χ" + (str(run.rank).translate(digits) if run.rank else "ₖ")


def percent(share: float, decimals: int = 0) -> str:
    """A share of 1 in per cent, with two digits at least if it is small."""
    if not math.isfinite(share):
        return "–"
    small = decimals == 0 and abs(share) < 0.1
    text = f"{100 * share:.2g}" if small else f"{100 * share:.{decimals}f}"
    return text.replace("-", "−") + "\N{NO-BREAK SPACE}%"


def _reached(s: Summary) -> str:
    return f"{s.label}: {s.status}, step {s.last_step:,}"


def _prefix(run):
    losses = run.series(PREFIX, "train_loss")
    losses = losses[np.isfinite(losses)]
    path = f"{run.summary(PREFIX).last_step:,} steps"
    if losses.size:
        change = f"from {number(losses[0])} to {number(losses[-1])}"
        sentence = f"The prefix took the training loss {change} in {path}"
    else:
        sentence = f"The prefix ran for {path}"
    if (run.info.get("prefix") or {}).get("status") == "diverged":
        return f"{sentence} and diverged there, so that there are no arms."
    if run.switch_step is None:
        yet = "" if run.info.get("status") == "complete" else " yet"
        return f"{sentence}; there was no switch{yet}, so there are no arms{yet}."
    reason = (run.info.get("switch") or {}).get("reason")
    why = f" ({reason})" if reason and reason != f"step {run.switch_step}" else ""
    forked = f"it forked into {len(run.arms)} arm{'s' * (len(run.arms) != 1)}"
    return f"{sentence}; at step {run.switch_step:,}{why} {forked}."


def _arm(run, arm, sgd):
    """How far an arm took the loss, and where it stands against SGD."""
    losses = run.series(arm.name, "train_loss")
    ratio = arm.loss_ratio
    if arm.status == "diverged":
        finite = run.steps(arm.name)[np.isfinite(losses)]
        if not finite.size:
            return f"{arm.label} diverged at once."
        return (
            f"{arm.label} diverged: its last finite training loss was "
            f"{number(arm.train_loss)} at step {finite[-1]:,}, {_times(ratio)} the "
            "loss at the switch."
        )
    if not math.isfinite(arm.train_loss):
        return ""
    if not math.isfinite(ratio):
        return f"{arm.label} took the training loss to {number(arm.train_loss)}."
    kept = f"the loss fell to {percent(ratio)} of that at the switch"
    if ratio > 1 + _LEVEL:
        told = f"lost ground: it raised the loss to {_times(ratio)} that at the switch"
    elif ratio >= 1 - _LEVEL:
        told = f"stood still: it ended at {percent(ratio)} of the loss at the switch"
    elif ratio >= 0.5:
        told = f"made some progress: {kept}"
    else:
        told = f"made progress: {kept}"
    if arm.status != "complete":
        told += f" ({arm.status} at step {arm.last_step:,})"
    return f"{arm.label} {told}{_against(run, arm, sgd)}."


def _against(run, arm, sgd):
    if sgd is None or sgd.name == arm.name or sgd.status == "diverged":
        return ""
    step, losses = _last_common(run, [arm, sgd])
    if step is None:
        return ""
    mine, theirs = losses
    quotient = mine / theirs if theirs else math.inf
    if abs(quotient - 1) <= _LEVEL:
        verdict = "about level"
    elif quotient < 1:
        verdict = f"{percent(1 - quotient)} lower"
    else:
        verdict = f"{_times(quotient)} as high"
    values = f"{number(mine)} against SGD's {number(theirs)}"
    return f", and at step {step:,} reached {values} ({verdict})"


def _shares(run, arms, sgd):
    """Which part of SGD's decrease each half of its steps achieved alone."""
    sound = [
        arm for arm in arms if arm.status != "diverged" and not _is_blind(run, arm)
    ]
    by_method = {arm.method: arm for arm in reversed(sound)}
    if not {"sgd", "dom_sgd", "bulk_sgd"} <= by_method.keys():
        return ""
    trio = [by_method[name] for name in ("sgd", "dom_sgd", "bulk_sgd")]
    step, losses = _last_common(run, trio)
    if step is None:
        return ""
    decreases = run.switch_loss - np.array(losses)
    if not decreases[0] > _LEVEL * abs(run.switch_loss):
        return "SGD itself hardly lowered the loss after the switch."
    dom, bulk = decreases[1:] / decreases[0]
    if dom <= 0.25 and bulk >= 0.75:
        verdict = "the flat directions did the training"
    elif bulk <= 0.25 and dom >= 0.75:
        verdict = "the sharp directions did the training"
    elif min(dom, bulk) >= 0.75:
        verdict = "either part alone was nearly enough"
    else:
        verdict = "neither part alone tells the whole story"
    return (
        f"Of SGD's decrease of the loss from the switch to step {step:,}, Dom-SGD "
        f"achieved {percent(dom)} and Bulk-SGD {percent(bulk)}: here {verdict}."
    )


def _aligned(run, sgd):
    if sgd is None or not math.isfinite(sgd.alignment):
        return ""
    after = run.series(sgd.name, "alignment_update")[
        run.steps(sgd.name) > (run.switch_step or 0)
    ]
    energy = np.nanmean(after**2)
    total = run.info.get("num_params")
    where = (
        f"{run.rank} of {total:,} dimensions"
        if total and run.rank
        else "the dominant subspace"
    )
    return (
        f"SGD's updates after the switch had a mean {chi(run)} of "
        f"{number(sgd.alignment)}: {percent(energy)} of their squared length lay in "
        f"{where}."
    )


def _sharp(run, arms):
    known = [arm for arm in arms if math.isfinite(arm.sharpness_ratio)]
    if not known:
        return ""
    listed = ", ".join(f"{number(a.sharpness_ratio)} ({a.label})" for a in known)
    threshold = f", against the stability threshold {run.stability:g} of {whose(run)}"
    known = math.isfinite(run.stability)
    return f"Last sharpness ηλ₁{threshold if known else ''}: {listed}."


def _failures(arms):
    failed = [arm for arm in arms if arm.failed_refreshes]
    if not failed:
        return ""
    listed = ", ".join(f"{a.failed_refreshes:,} ({a.label})" for a in failed)
    return f"Refreshes that failed and kept the previous subspace: {listed}."


def _is_blind(run, arm):
    """Whether refreshes failed and none ever gave the arm a subspace."""
    found = np.isfinite(run.series(arm.name, "kept"))
    return arm.failed_refreshes > 0 and not found.any()


def _blindness(run, arms):
    blind = [arm.label for arm in arms if _is_blind(run, arm)]
    if not blind:
        return ""
    return (
        f"Every refresh of {', '.join(blind)} failed, so that no subspace was ever "
        "found: what follows about them says nothing of sharp and flat directions. "
        "More matvecs or a larger tolerance may help."
    )


def _emptiness(run, arms):
    """Where no vector was in the subspace, as with a threshold above λ₁."""
    told, start = [], run.switch_step or 0
    for arm in arms:
        kept = run.series(arm.name, "kept")[run.steps(arm.name) > start]
        kept = kept[np.isfinite(kept)]
        if np.any(kept == 0):
            told.append(f"{np.sum(kept == 0):,} of {kept.size:,} ({arm.label})")
    if not told:
        return ""
    return (
        f"Rows with an empty subspace, where the whole update is bulk: "
        f"{', '.join(told)}."
    )


def _last_common(run, arms):
    """The last step after the switch with a finite loss of all `arms`; the losses."""
    tables = []
    for arm in arms:
        losses = run.series(arm.name, "train_loss")
        tables.append(
            {
                int(step): float(loss)
                for step, loss in zip(run.steps(arm.name), losses)
                if math.isfinite(loss) and step > (run.switch_step or 0)
            }
        )
    common = set.intersection(*map(set, tables))
    if not common:
        return None, []
    return max(common), [table[max(common)] for table in tables]


def _times(ratio):
    return f"{number(ratio)} times"
