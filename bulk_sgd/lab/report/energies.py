"""Where the curvature of a study lies: energies of H, G and F along SGD."""

import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bulk_sgd.curvature.hessian import CURVATURES
from bulk_sgd.lab.report import page
from bulk_sgd.lab.report.formatting import number
from bulk_sgd.lab.report.results import SGD, last_finite
from bulk_sgd.lab.report.study import Axis, Cell, Spread
from bulk_sgd.lab.report.study_panels import draw_band, field_label, legend
from bulk_sgd.lab.report.study_tables import plus_minus, show
from bulk_sgd.lab.report.style import MUTED, OPERATOR_STYLES, STYLE, new_figure, plain

SYMBOLS = {"hessian": "H", "gauss_newton": "G", "functional_hessian": "F"}
_COLUMNS = (
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


def has_energies(axis: Axis) -> bool:
    """Whether any cell measured curvature energies along SGD."""
    return any(
        cell.run.logged(SGD, "hessian/frobenius_share")[1].size
        for cell in _with_sgd(axis.cells)
    )


def has_trace(cells: list[Cell], operator: str) -> bool:
    """Whether a trace stands out of its own standard error, in most measurements."""
    trace, error = (
        np.concatenate(
            [[], *(c.run.series(SGD, f"{operator}/{k}") for c in _with_sgd(cells))]
        )
        for k in ("trace", "trace_error")
    )
    known = np.isfinite(trace) & np.isfinite(error)
    clear = np.abs(trace[known]) > 3 * error[known]
    return not clear.size or np.mean(clear) > 0.5


@matplotlib.rc_context(STYLE)
def energy_figure(axis: Axis) -> Figure:
    """Trace and Frobenius shares of H, G and F in the dominant subspace, along SGD."""
    groups = {
        label: cells
        for label, cells in axis.groups.items()
        if any(cell.run for cell in cells)
    }
    figure, panels = new_figure(2, len(groups), (10.4, 6.0))
    rows = (("trace_share", "trace share"), ("frobenius_share", "Frobenius share"))
    for column, (label, cells) in enumerate(groups.items()):
        for row, (share, name) in enumerate(rows):
            axes = panels[row * len(groups) + column]
            for operator, (_, style) in OPERATOR_STYLES.items():
                if share == "trace_share" and not has_trace(cells, operator):
                    continue  # a share of nothing
                draw_band(axes, cells, SGD, f"{operator}/{share}", style)
            axes.set_ylim(-0.1 if share == "trace_share" else 0, 1.1)
            axes.axhline(1, color=MUTED, linewidth=0.7)
            axes.set_ylabel(name if column == 0 else "")
        field = f"{field_label(axis)} " if axis.values else ""
        panels[column].set_title(plain(field + label), loc="left")
        panels[len(groups) + column].set_xlabel("step")
    legend(figure, [*OPERATOR_STYLES.values()])
    return figure


def energy_table(axis: Axis) -> str:
    """Traces, norms, shares and forms of H, G and F at the end of SGD, as HTML."""
    groups = {label: _with_sgd(cells) for label, cells in axis.groups.items()}
    rows, facts, forms = [], [], []
    for label, cells in groups.items():
        if not cells:
            continue
        for operator in CURVATURES:
            keys = [f"{operator}/{key}" for _, key in _COLUMNS]
            numbers = {key: plus_minus(_last(cells, key)) for key in keys}
            if not has_trace(cells, operator):
                numbers[f"{operator}/trace_share"] = "–"
            names = [SYMBOLS[operator], label]
            rows.append([*names, *numbers.values()])
            forms.append([*names, *map(number, _rayleigh(cells, operator))])
        facts.append(
            f"{label}: overlap of the eigenspaces of H and G "
            f"{show(_last(cells, 'eigenspace_overlap'))}, largest error of H = G + F "
            f"{number(_worst(cells, 'sum_rule_error'))}."
        )
    items = "".join(f"<li>{page.text(fact)}</li>\n" for fact in facts)
    heads = ["operator M", "setting"]
    energies = page.table(
        f"{axis.title}: energies at the end of SGD",
        heads + [head for head, _ in _COLUMNS],
        rows,
    )
    vectors = page.table(
        f"{axis.title}: uᵢᵀ M uᵢ of the eigenvectors of H at the end of SGD, mean over "
        "seeds",
        heads + [f"u{i}" for i in range(1, len(forms[0]) - 1)],
        forms,
    )
    return f"{energies}<ul>\n{items}</ul>{vectors}"


def _with_sgd(cells):
    return [cell for cell in cells if SGD in cell.arms]


def _rayleigh(cells, operator):
    """u_iᵀ M u_i in the last row of SGD that has it, averaged over the cells."""
    tables = []
    for cell in cells:
        rows = [row.get(f"{operator}/rayleigh") for row in cell.run.rows[SGD]]
        tables += [row for row in rows if row][-1:]
    numbers = [[math.nan if x is None else x for x in row] for row in tables]
    return np.mean(numbers, axis=0) if numbers else []


def _last(cells, key):
    return Spread.of(last_finite(cell.run.series(SGD, key)) for cell in cells)


def _worst(cells, key):
    errors = [cell.run.logged(arm, key)[1] for cell in cells for arm in cell.arms]
    return max(np.concatenate(errors), default=math.nan)
