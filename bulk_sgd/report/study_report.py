"""The report of a study: claims, then one figure and one table per axis.

`python -m bulk_sgd.report --workdir=FOLDER`, where FOLDER is a sweep or holds some,
writes into FOLDER/report: `index.html`, self-contained; its figures as PNG and PDF;
`claims.md`, the claims table as Markdown; and `tables.json`, every number of the page.
"""

import functools
import json
import math
import pathlib

import numpy as np

from bulk_sgd.curvature import CURVATURES
from bulk_sgd.report import page
from bulk_sgd.report.claims import Claim, claims
from bulk_sgd.report.narrative import number, percent
from bulk_sgd.report.results import last_finite
from bulk_sgd.report.study import (
    SGD,
    TARGET,
    Axis,
    Spread,
    has_energies,
    read_study,
)
from bulk_sgd.report.study_figures import figures_of, has_trace
from bulk_sgd.report.style import arm_styles, save

# Columns of an axis' table: heading and key of `Cell.outcome`.
_COLUMNS = (
    ("loss / loss at fork", "loss_ratio"),
    ("progress", "progress"),
    ("speed-up in steps", "speed_up"),
    ("in matvecs", "matvec_speed_up"),
    ("test accuracy", "test_accuracy"),
    ("χ of updates", "alignment"),
    ("descent ratio", "descent_ratio"),
    ("ηλ₁", "sharpness_ratio"),
    ("η batch sharpness", "batch_sharpness"),
    ("largest stable η", "stable_rate"),
)
# Fields that tell the setting of an axis.
_SETTING = (
    *("data.name", "data.num_train", "model.name", "model.hidden", "model.activation"),
    *("loss.name", "loss.reduction", "optimizer.name", "optimizer.learning_rate"),
    *("batch_size", "num_steps", "subspace.rank", "subspace.data"),
    *("subspace.solver", "subspace.refresh_every"),
)
_SYMBOLS = {"hessian": "H", "gauss_newton": "G", "functional_hessian": "F"}
_ENERGY_COLUMNS = (
    ("tr M", "trace"),
    ("its standard error", "trace_error"),
    ("trace share", "trace_share"),
    ("‖M‖²_F", "frobenius"),
    ("its standard error", "frobenius_error"),
    ("Frobenius share", "frobenius_share"),
    ("block share", "block_share"),
    ("form along Pu", "form_dominant"),
    ("form along u − Pu", "form_bulk"),
)


def write_report(workdir) -> pathlib.Path:
    """Writes the report of a study, finished or not, into `workdir/report`.

    Args:
      workdir: a sweep, or a folder of sweeps.

    Returns:
      The path of the page.

    Raises:
      FileNotFoundError: if there is no sweep.

    Example:
      >>> write_report("runs/study-cpu")  # doctest: +SKIP
      PosixPath('runs/study-cpu/report/index.html')
    """
    workdir = pathlib.Path(workdir)
    axes = read_study(workdir)
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    table = claims(axes)
    (folder / "claims.md").write_text(claims_markdown(table), encoding="utf-8")
    numbers = {"claims": [_plain_claim(c) for c in table], "axes": _numbers(axes)}
    text = json.dumps(numbers, indent=1, ensure_ascii=False)
    (folder / "tables.json").write_text(text + "\n", encoding="utf-8")
    body = [_claims_section(table), *(_section(axis, folder) for axis in axes)]
    title = page.text(axes[0].title if len(axes) == 1 else "Sharp and flat directions")
    path = folder / "index.html"
    page_text = page.document(title, _head(axes) + "".join(body) + _provenance(axes))
    path.write_text(page_text, encoding="utf-8")
    return path


def claims_markdown(table: list[Claim]) -> str:
    """The claims table as Markdown."""
    lines = ["| claim | holds if | measured | verdict |", "|---|---|---|---|"]
    lines += [
        f"| {c.text} | {c.criterion} | {show(c.measured)} | {c.verdict} |"
        for c in table
    ]
    return "\n".join(lines) + "\n"


def show(spread: Spread) -> str:
    """Mean ± deviation, and over how many seeds; a dash where there is none."""
    if not spread.count:
        return "–"
    return f"{_plus_minus(spread)} (n = {spread.count})"


def _plus_minus(spread):
    if spread.count < 2:
        return number(spread.mean)
    rounding = 1e-12 * abs(spread.mean)  # of equal numbers
    deviation = spread.deviation if spread.deviation > rounding else 0.0
    return f"{number(spread.mean)} ± {number(deviation)}"


def _head(axes):
    cells = [cell for axis in axes for cell in axis.cells]
    states = [cell.status for cell in cells]
    counts = {status: states.count(status) for status in dict.fromkeys(states)}
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    notes = "".join(
        f'<p class="note">{page.text(axis.name)}: cell {cell.index} '
        f"({page.text(json.dumps(cell.settings))}) is {page.text(cell.status)}.</p>\n"
        for axis in axes
        for cell in axis.cells
        if cell.status not in ("complete", "pending")
    )
    axes_word = "axis" if len(axes) == 1 else "axes"
    return f"""<p class="facts">{len(axes)} {axes_word}, {len(cells)} cells: {told}</p>
<p>Each run trains by SGD up to a fork, from which every arm goes on with its updates
scaled by a in the dominant subspace and by b in the bulk: SGD is (1, 1), Dom-SGD
(1, 0), Bulk-SGD (0, 1). Numbers are means over seeds ± one standard deviation.
<em>Progress</em> is the decrease of the training loss after the fork over that of SGD;
<em>speed-up</em> the steps (or matvecs) that SGD took to {TARGET:.0%} of its decrease
over those the arm took to the same loss, 0 where it never got there; the
<em>descent ratio</em> the part of the first-order decrease of the batch loss that the
scaling leaves; χ the part of an update's length in the dominant subspace; ηλ₁ is that
of the Hessian of the whole training loss at the last step. A claim is undecided where
the mean is within two standard errors of the threshold. Where fewer seeds gave a number
than ran, n tells how many.</p>
{notes}"""


def _claims_section(table):
    rows = [[c.text, c.criterion, show(c.measured), c.verdict, c.source] for c in table]
    heads = ["claim", "holds if", "measured", "verdict", "cells"]
    return "<h2>Claims</h2>\n" + page.table("Claims", heads, rows, prose=True)


def _section(axis: Axis, folder):
    question, *rest = axis.about.split("\n\n")
    parts = [f'<h2 id="{page.text(axis.name)}">{page.text(axis.title)}</h2>']
    parts.append(f"<p><em>{page.text(question)}</em></p>")
    parts += [f"<p>{page.text(text)}</p>" for text in rest if "python -m" not in text]
    parts.append(_setting(axis))
    for name, figure in figures_of(axis).items():
        image = save(figure, folder / f"{axis.name}-{name}")
        caption = _caption(axis, name)
        parts.append(page.figure(f"{axis.title}: {name}", caption, caption, image))
    parts.append(_table(axis))
    if has_energies(axis):
        parts.append(_energy_table(axis))
    return "\n".join(parts)


def _setting(axis):
    """What all cells of an axis have in common, in a line, and the whole config."""
    run = next((cell.run for cell in axis.cells if cell.run), None)
    config = run.info.get("config") if run else None
    if not config:
        return ""
    facts = []
    for field in _SETTING:
        value = functools.reduce(dict.get, field.split("."), config)
        if field not in axis.fields:
            facts.append(f"{field} = {json.dumps(value, ensure_ascii=False)}")
    facts.append(f"{run.info.get('num_params'):,} parameters")
    facts.append(f"fork at step {run.switch_step}")
    whole = json.dumps(config, indent=2, ensure_ascii=False)
    return (
        f'<p class="note">Setting of the first cell: {page.text("; ".join(facts))}.</p>'
        f"<details><summary>Its whole config</summary>\n<pre>{page.text(whole)}</pre>"
        "</details>\n"
    )


def _caption(axis, name):
    seeds = max(map(len, axis.groups.values()), default=0)
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    return {
        "settings": f"Each method over the settings of the axis; {over}. Dashed: the "
        "loss at the fork, and for plain SGD its stability threshold ηλ₁ = 2.",
        "families": f"Along the families of scales (a, b); {over}. α = 1 of the bulk "
        "path and of the dom path is SGD.",
        "plane": f"Over the plane of scales (a, b); {over}. A × counts the seeds that "
        "diverged; points without a number were not run.",
        "training": f"Along training, {over}.",
        "energies": "Shares of trace and squared Frobenius norm in the dominant "
        f"subspace of H, along SGD; {over}. A trace within three standard errors of "
        "zero has no share.",
    }[name]


def _table(axis):
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
                    f"{np.nansum(diverged):.0f} of {len(diverged)}",
                    *(
                        _cell(axis.spread(label, arm, key), key, len(diverged))
                        for _, key in shown
                    ),
                ]
            )
            colors.append(styles[arm].color)
    heads = ["method", "setting", "diverged", *(head for head, _ in shown)]
    return page.table(f"{axis.title}: all numbers", heads, rows, colors)


def _cell(spread, key, count):
    if not spread.count:
        return "–"
    if key == "test_accuracy":
        return percent(spread.mean, 1)
    known = f" (n = {spread.count})" if spread.count < count else ""
    return _plus_minus(spread) + known


def _energy_table(axis):
    rows = []
    for label, cells in axis.groups.items():
        for operator in CURVATURES:
            rows.append(
                [
                    _SYMBOLS[operator],
                    label,
                    *(
                        "–"
                        if key == "trace_share" and not has_trace(cells, operator)
                        else _plus_minus(_last(cells, f"{operator}/{key}"))
                        for _, key in _ENERGY_COLUMNS
                    ),
                ]
            )
    heads = ["operator M", "setting", *(head for head, _ in _ENERGY_COLUMNS)]
    facts = [
        f"{label}: overlap of the eigenspaces of H and G "
        f"{show(_last(cells, 'eigenspace_overlap'))}, largest error of H = G + F "
        f"{_worst(cells, 'sum_rule_error'):.1e}."
        for label, cells in axis.groups.items()
    ]
    title = f"{axis.title}: energies at the end of SGD"
    told = "".join(f"<li>{page.text(fact)}</li>\n" for fact in facts)
    return f"{page.table(title, heads, rows)}<ul>\n{told}</ul>"


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


def _numbers(axes):
    """Every outcome of every cell, for readers that are programs."""
    return {
        axis.name: [
            {
                "cell": cell.index,
                "settings": cell.settings,
                "status": cell.status,
                "arms": {
                    arm: {k: _finite(v) for k, v in cell.outcome(arm).items()}
                    for arm in cell.arms
                },
            }
            for cell in axis.cells
        ]
        for axis in axes
    }


def _plain_claim(claim):
    measured = claim.measured
    return {
        "claim": claim.text,
        "criterion": claim.criterion,
        "mean": _finite(measured.mean),
        "deviation": _finite(measured.deviation),
        "seeds": measured.count,
        "verdict": claim.verdict,
        "cells": claim.source,
    }


def _finite(value):
    return value if math.isfinite(value) else None


def _provenance(axes):
    infos = [cell.run.info for axis in axes for cell in axis.cells if cell.run]
    if not infos:
        return ""
    seconds = sum(info.get("seconds") or 0 for info in infos)

    def distinct(key):
        return "; ".join(dict.fromkeys(str(info.get(key)) for info in infos))

    versions = infos[-1].get("versions") or {}
    entries = {
        "device": distinct("device"),
        "git": distinct("git"),
        "versions": ", ".join(f"{name} {v}" for name, v in versions.items()),
        "training": f"{seconds:,.0f} seconds in all, without compilation",
    }
    items = "".join(
        f"<dt>{name}</dt><dd>{page.text(value)}</dd>\n"
        for name, value in entries.items()
    )
    return f"<h2>Provenance</h2>\n<dl>\n{items}</dl>\n"
