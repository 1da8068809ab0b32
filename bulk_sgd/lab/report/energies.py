"""Where the curvature of a study lies: energies of H, G and F along SGD."""

import math
import textwrap

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
_COLUMNS = {
    "trace": "tr M",
    "trace_error": "its standard error",
    "trace_share": "trace share",
    "frobenius": "‖M‖²_F",
    "frobenius_error": "its standard error",
    "frobenius_share": "Frobenius share",
    "block_share": "block share",
    "form_dominant": "form along Pg",
    "form_bulk": "form along g − Pg",
}


def has_energies(axis: Axis) -> bool:
    """Whether any cell measured curvature energies along SGD."""
    return bool(_measured(axis.cells))


def has_trace(cells: list[Cell], operator: str) -> bool:
    """Whether a trace stands out of its own standard error, in most measurements."""
    runs = [cell.run for cell in _with_sgd(cells)]
    joined = lambda key: np.concatenate([[], *(run.series(SGD, key) for run in runs)])
    trace, error = joined(f"{operator}/trace"), joined(f"{operator}/trace_error")
    known = np.isfinite(trace) & np.isfinite(error)
    clear = np.abs(trace[known]) > 3 * error[known]
    return not clear.size or np.mean(clear) > 0.5


@matplotlib.rc_context(STYLE)
def energy_figure(axis: Axis) -> Figure:
    """Trace and Frobenius shares of H, G and F in the dominant subspace, along SGD."""
    groups = _measured_groups(axis)
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
        title = textwrap.fill(field + label, 90 // len(groups))
        panels[column].set_title(plain(title), loc="left")
        panels[len(groups) + column].set_xlabel("step")
    legend(figure, [*OPERATOR_STYLES.values()])
    return figure


def energy_table(axis: Axis) -> str:
    """Traces, norms, shares and forms of H, G and F at the end of SGD, as HTML."""
    rows, facts, forms = [], [], []
    for label, cells in _measured_groups(axis).items():
        for operator in CURVATURES:
            found = {key: _last(cells, f"{operator}/{key}") for key in _COLUMNS}
            numbers = {key: plus_minus(spread) for key, spread in found.items()}
            if not has_trace(cells, operator):
                numbers["trace_share"] = "–"
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
    label = f"{axis.title}: energies at the end of SGD"
    energies = page.table(label, [*heads, *_COLUMNS.values()], rows)
    label = f"{axis.title}: uᵢᵀ M uᵢ of the eigenvectors of H at the end of SGD, mean"
    heads += [f"u{i}" for i in range(1, len(forms[0]) - 1)]
    vectors = page.table(f"{label} over seeds", heads, forms)
    return f"{energies}<ul>\n{items}</ul>{vectors}"


def _with_sgd(cells):
    return [cell for cell in cells if SGD in cell.arms]


def _measured(cells):
    """The cells that measured energies along SGD."""
    has = lambda run: run.logged(SGD, "hessian/frobenius_share")[1].size
    return [cell for cell in _with_sgd(cells) if has(cell.run)]


def _measured_groups(axis):
    found = {label: _measured(cells) for label, cells in axis.groups.items()}
    return {label: cells for label, cells in found.items() if cells}


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
