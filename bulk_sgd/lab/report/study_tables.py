"""The tables of a study's report, as HTML."""

import math

import numpy as np

from bulk_sgd.curvature.hessian import CURVATURES
from bulk_sgd.lab.report import page
from bulk_sgd.lab.report.narrative import number, percent
from bulk_sgd.lab.report.results import last_finite
from bulk_sgd.lab.report.study import SGD, SYMBOLS, Axis, Spread
from bulk_sgd.lab.report.study_figures import has_trace
from bulk_sgd.lab.report.style import arm_styles

# Columns of an axis' table: heading and key of `Cell.outcome`.
_COLUMNS = (
    ("loss / loss at fork", "loss_ratio"),
    ("progress", "progress"),
    ("speed-up in steps", "speed_up"),
    ("in matvecs", "matvec_speed_up"),
    ("test accuracy", "test_accuracy"),
    ("χ of updates", "alignment"),
    ("χ² of gradients", "gradient_energy"),
    ("descent ratio", "descent_ratio"),
    ("ηλ₁", "sharpness_ratio"),
    ("η batch sharpness", "batch_sharpness"),
    ("largest stable η", "stable_rate"),
)

_ENERGY_COLUMNS = (
    ("tr M", "trace"),
    ("its standard error", "trace_error"),
    ("trace share", "trace_share"),
    ("‖M‖²_F", "frobenius"),
    ("its standard error", "frobenius_error"),
    ("Frobenius share", "frobenius_share"),
    ("block share", "block_share"),
    ("form along Pg", "form_dominant"),
    ("form along g − Pg", "form_bulk"),
)


def of_axis(axis: Axis) -> str:
    """Every number of an axis, a row per method and setting."""
    shown = [
        (head, key)
        for head, key in _COLUMNS
        if any(
            axis.spread(label, arm, key).count
            for label in axis.groups
            for arm in axis.arms
        )
    ]
    runs = [cell.run for cell in axis.cells if cell.run]
    if not runs:
        return '<p class="note">No cell has begun.</p>'
    labels = {arm: run.summary(arm) for run in reversed(runs) for arm in run.arms}
    styles = arm_styles([labels[arm] for arm in axis.arms])
    rows, colors = [], []
    for label in axis.groups:
        for arm in axis.arms:
            diverged = axis.over_seeds(label, arm, "diverged")
            if not diverged:
                continue
            rows.append(
                [
                    labels[arm].label,
                    label,
                    f"{np.nansum(diverged):.0f} of {np.isfinite(diverged).sum()}",
                    *(
                        _cell(axis.spread(label, arm, key), key, len(diverged))
                        for _, key in shown
                    ),
                ]
            )
            colors.append(styles[arm].color)
    heads = ["method", "setting", "diverged", *(head for head, _ in shown)]
    return page.table(f"{axis.title}: all numbers", heads, rows, colors)


def show(spread: Spread, seeds: int | None = None) -> str:
    """Mean ± deviation, and over how many of the seeds; a dash where there is none."""
    if not spread.count:
        return "–"
    of = f" of {seeds}" if seeds and seeds > spread.count else ""
    return f"{_plus_minus(spread)} (n = {spread.count}{of})"


def _plus_minus(spread):
    if spread.count < 2:
        return number(spread.mean)
    rounding = 1e-12 * abs(spread.mean)  # of equal numbers
    deviation = spread.deviation if spread.deviation > rounding else 0.0
    return f"{number(spread.mean)} ± {number(deviation)}"


def _cell(spread, key, count):
    if not spread.count:
        return "–"
    if key == "test_accuracy":
        return percent(spread.mean, 1)
    known = f" (n = {spread.count})" if spread.count < count else ""
    return _plus_minus(spread) + known


def of_energies(axis: Axis) -> str:
    """Traces, norms, shares and forms of H, G and F at the end of SGD."""
    groups = {
        label: [cell for cell in cells if SGD in cell.arms]
        for label, cells in axis.groups.items()
    }
    groups = {label: cells for label, cells in groups.items() if cells}
    rows = []
    for label, cells in groups.items():
        for operator in CURVATURES:
            rows.append(
                [
                    SYMBOLS[operator],
                    label,
                    *(
                        "–"
                        if key == "trace_share" and not has_trace(cells, operator)
                        else _plus_minus(_last(cells, f"{operator}/{key}"))
                        for _, key in _ENERGY_COLUMNS
                    ),
                ]
            )
    heads_of_energies = ["operator M", "setting", *(h for h, _ in _ENERGY_COLUMNS)]
    facts = [
        f"{label}: overlap of the eigenspaces of H and G "
        f"{show(_last(cells, 'eigenspace_overlap'))}, largest error of H = G + F "
        f"{_worst(cells, 'sum_rule_error'):.1e}."
        for label, cells in groups.items()
    ]
    title = f"{axis.title}: energies at the end of SGD"
    told = "".join(f"<li>{page.text(fact)}</li>\n" for fact in facts)
    forms = [
        [SYMBOLS[operator], label, *map(number, _rayleigh(cells, operator))]
        for label, cells in groups.items()
        for operator in CURVATURES
    ]
    heads = ["operator M", "setting", *(f"u{i}" for i in range(1, len(forms[0]) - 1))]
    vectors = page.table(
        f"{axis.title}: uᵢᵀ M uᵢ of the eigenvectors of H at the end of SGD, mean over "
        "seeds",
        heads,
        forms,
    )
    return f"{page.table(title, heads_of_energies, rows)}<ul>\n{told}</ul>{vectors}"


def _rayleigh(cells, operator):
    """u_iᵀ M u_i in the last row of SGD that has it, averaged over the cells."""
    tables = []
    for cell in cells:
        rows = [row.get(f"{operator}/rayleigh") for row in cell.run.rows[SGD]]
        tables += [row for row in rows if row][-1:]
    numbers = [[math.nan if x is None else x for x in row] for row in tables]
    return np.mean(numbers, axis=0) if numbers else []


def _last(cells, key):
    return Spread.of(
        last_finite(cell.run.series(SGD, key)) for cell in cells if SGD in cell.arms
    )


def _worst(cells, key):
    errors = [
        cell.run.series(arm, key) for cell in cells if cell.run for arm in cell.arms
    ]
    errors = np.concatenate([*errors, []])
    errors = errors[np.isfinite(errors)]
    return errors.max() if errors.size else math.nan
