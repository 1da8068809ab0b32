"""The report of a study: claims, then one figure and one table per axis."""

import collections
import functools
import json
import pathlib

from bulk_sgd.lab.files.record import make_folder
from bulk_sgd.lab.from_config import unused
from bulk_sgd.lab.report import (
    page,
    payoff,
    payoff_section,
    study,
    study_numbers,
    study_tables,
    tuned,
    tuned_section,
)
from bulk_sgd.lab.report.claims import claims
from bulk_sgd.lab.report.comparison import differences, read_comparison
from bulk_sgd.lab.report.energies import energy_table, has_energies
from bulk_sgd.lab.report.formatting import whole
from bulk_sgd.lab.report.outcomes import TARGET
from bulk_sgd.lab.report.saving import save
from bulk_sgd.lab.report.study import Axis, read_study, short_name
from bulk_sgd.lab.report.study_figures import figures_of
from bulk_sgd.lab.report.study_panels import field_label
from bulk_sgd.lab.report.study_tables import show
from bulk_sgd.lab.report.style import shorten
from bulk_sgd.lab.report.verdicts import FAILS, HOLDS, Claim

# Fields that describe the setting of an axis, where the runs use them.
_SETTING = (
    "data.name",
    "data.num_train",
    "model.name",
    "model.hidden",
    "model.activation",
    "loss.name",
    "loss.reduction",
    "optimizer.name",
    "optimizer.learning_rate",
    "optimizer.momentum",
    "optimizer.projection",
    "batch_size",
    "num_steps",
    "subspace.rank",
    "subspace.data",
    "subspace.solver",
    "subspace.refresh_every",
)
_HEADS = "claim", "holds if", "measured", "verdict"


def write_report(workdir, out=None) -> pathlib.Path:
    """Writes the page of a study, finished or not, as `write.write_report` does.

    A FileNotFoundError says that `workdir` neither is nor holds a sweep.
    """
    workdir = pathlib.Path(workdir)
    axes = read_study(workdir)
    folder = make_folder(out or workdir / "report", "out")
    table = claims(list(map(tuned.winners, axes)))
    # A sweep of a user's own need not be about the paper's claims.
    if len(axes) == 1 and not any(map(_is_decided, table)):
        table = []
    compared = payoff.sweeps(axes)
    table += payoff.claims(compared)
    markdown = folder / "claims.md"
    markdown.unlink(missing_ok=True)  # of an earlier report
    if table:
        markdown.write_text(claims_markdown(table), encoding="utf-8")
    title = axes[0].title if len(axes) == 1 else "Sharp and flat directions"
    return _write(axes, folder, title, table, compared=compared)


def write_comparison(workdirs, labels, folder) -> pathlib.Path:
    """Writes a page that puts runs and sweeps side by side; returns its path.

    Raises ValueError or FileNotFoundError as `read_comparison` does.
    """
    axis = read_comparison(workdirs, labels)
    folder = make_folder(folder, "out")
    title = shorten(", ".join(axis.groups), 80)
    return _write([axis], folder, title, more=differences(axis))


def _write(axes, folder, title, table=(), more="", compared=()):
    several = compared if len(compared) > 1 else ()
    study_numbers.write(folder / "tables.json", axes, table, several)
    parts = [_head(axes), _claims_section(table) if table else "", more]
    if several:
        keep = lambda figure, name: save(figure, folder / name)
        parts.append(payoff_section.section(several, keep))
    parts += [_section(axis, folder, title) for axis in axes]
    parts += [_provenance(axes)]
    return page.write(folder, page.text(title), "".join(parts))


def claims_markdown(table: list[Claim]) -> str:
    """The claims table as Markdown."""
    rows = [f"| {' | '.join(row)} |\n" for row in (_HEADS, *map(_row, table))]
    return "".join([rows[0], "|---|---|---|---|\n", *rows[1:]])


def _row(claim):
    measured = show(claim.measured, claim.seeds)
    return claim.text, claim.criterion, measured, claim.verdict


def _head(axes):
    cells = [cell for axis in axes for cell in axis.cells]
    counts = collections.Counter(cell.status for cell in cells)
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items())
    notes = [
        f"{a.name}: cell {c.index} ({json.dumps(c.settings)}) is {c.status}."
        for a in axes
        for c in a.cells
        if c.status not in ("complete", "pending")
    ]
    notes += dict.fromkeys(x for c in cells if c.run for x in c.run.doubts)
    several = f"Axes: {len(axes)}. " if len(axes) > 1 else ""
    return f"""<p class="facts">{several}Cells: {len(cells)}, {statuses}.</p>
<p>Each run trains by SGD up to a fork. From there every arm scales its updates by a in
the dominant subspace and by b in the bulk: SGD is (1, 1), Dom-SGD (1, 0), Bulk-SGD
(0, 1). Numbers are means over seeds ± one standard deviation. <em>Progress</em> is the
decrease of the training loss after the fork over SGD's. <em>Speed-up</em> is the
number of steps (or matvecs) in which SGD made {TARGET:.0%} of its decrease over the
number in which the arm reached the same loss, 0 if it never did; if some seeds never
did, the mean is over the others. The <em>descent
ratio</em> is the part of the first-order decrease of the batch loss that the scaling
leaves. χ is the length of a vector's dominant part over its whole length. ηλ₁ belongs
to the Hessian of the whole training loss at its last solve. Matvecs count for SGD too,
which keeps a subspace only to measure it: speed-up in matvecs compares at equal
refreshes. If only some of the seeds gave a number, n is how many did.</p>
{"".join(map(page.note, notes))}"""


def _claims_section(table):
    """The claims that the runs decide, and the others folded away."""
    heads = [*_HEADS, "cells"]

    def show(claims):
        rows = [[*_row(claim), claim.source] for claim in claims]
        return page.table("Claims", heads, rows, prose=True)

    decided = [claim for claim in table if _is_decided(claim)]
    others = [claim for claim in table if not _is_decided(claim)]
    head = "<h2>Claims</h2>\n" + show(decided) if decided else ""
    if not others:
        return head
    rule = """<p>A claim is undecided if the mean is within two standard errors of the
threshold (with three seeds, this rule is right in four cases of five), if a seed gave
no number, or if there is only one seed.</p>
"""
    folded = f"Claims that these runs do not decide: {len(others)}"
    return head + page.fold(folded, rule + show(others))


def _is_decided(claim):
    return claim.verdict in (HOLDS, FAILS)


def _section(axis: Axis, folder, title):
    question, *rest = axis.about.split("\n\n")
    head = f'<h2 id="{page.text(axis.name)}">{page.text(axis.title)}</h2>'
    parts = [head] if axis.title != title else []  # of the page
    parts += [f"<p><em>{page.text(question)}</em></p>"] if question else []
    parts += [f"<p>{page.text(text)}</p>" for text in rest if "python -m" not in text]
    parts.append(_setting(axis))
    keep = lambda figure, name: save(figure, folder / f"{axis.name}-{name}")
    if axis.tune:
        parts.append(tuned_section.section(axis, tuned.rows(axis), keep))
        axis = tuned.winners(axis)
    for name, figure in figures_of(axis).items():
        image = keep(figure, name)
        caption = _caption(axis, name)
        parts.append(page.figure(f"{axis.title}: {name}", caption, caption, image))
    parts.append(study_tables.of_axis(axis))
    if has_energies(axis):
        parts.append(energy_table(axis))
    return "\n".join(parts)


def _setting(axis):
    """A line with what all cells share, and the config of the first."""
    runs = [cell.run for cell in axis.cells if cell.run]
    configs = [run.info["config"] for run in runs if run.info.get("config")]
    if not configs:
        return ""
    facts = [f"{short_name(f)} {study.show(v)}" for f, v in shared_fields(configs)]
    for name, found in (
        ("parameters", {run.info.get("num_params") for run in runs}),
        ("fork at step", {run.fork_step for run in runs}),
    ):
        facts += [f"{name} {whole(found.pop())}"] if len(found) == 1 else []
    head = "The config of the first cell, without fields that it does not use"
    folded = page.details(head, unused.without(configs[0]))
    return page.note(f"In all cells: {'; '.join(facts)}.") + folded


def shared_fields(configs: list[dict]) -> list[tuple[str, object]]:
    """The fields of `_SETTING` that the runs use, with the value that they share."""
    found = []
    for field in _SETTING:
        values = _values(configs, field)
        used = all(
            {*users[field]} & {*_values(configs, chooser)}
            for chooser, users in unused.USED_BY.items()
            if field in users
        )
        same = all(value == values[0] for value in values)
        if used and same and values[0] not in (None, 0, "", []):
            found.append((field, values[0]))
    return found


def _values(configs, field):
    """A dotted field of each config, None where it is missing."""
    get = lambda holder, name: (holder or {}).get(name)
    return [functools.reduce(get, field.split("."), config) for config in configs]


def _caption(axis, name):
    seeds = max(map(len, axis.groups.values()), default=0)
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    lines = field_label(axis) or "settings"
    logs = f"{over}, of the logarithms on log scales" if seeds > 1 else over
    beside = (
        " Around each tick, the methods of this setting stand side by side, so that "
        "none hides another." * (len(axis.summaries) > 1)
    )
    fork = "the loss at the fork, and " * axis.shares_forks
    return {
        "settings": f"Each method over the settings of the axis; {logs}. Dashed: "
        f"{fork}the optimizer's stability threshold for ηλ₁.{beside}",
        "curves": f"After the fork, a panel per method; lines: {lines}; {over}. "
        "χ is measured on the updates before they are scaled.",
        "own": f"Measured by your own functions along training; {over}.",
        "families": f"Along the families of scales (a, b); {logs}. α = 1 of the bulk "
        "path and of the dom path is SGD.",
        "plane": f"Over the plane of scales (a, b); {over}. A × counts the seeds that "
        "diverged; points without a number were not run. A speed-up of 0 means that "
        "the run never reached the loss.",
        "training": f"After the fork, {over}.",
        "energies": "Shares of trace and squared Frobenius norm in the dominant "
        f"subspace of H, along SGD; {over}. Without the trace share where the trace is "
        "within three standard errors of zero in most rows.",
    }[name]


def _provenance(axes):
    infos = [cell.run.info for axis in axes for cell in axis.cells if cell.run]
    if not infos:
        return ""
    distinct = lambda key: dict.fromkeys(str(info.get(key)) for info in infos)
    entries = {
        "device": "; ".join(distinct("device")),
        "git": "; ".join(distinct("git")),
        "versions": page.versions(infos[-1]),
        **page.commands(infos, any(axis.grown for axis in axes)),
    }
    return "<h2>Provenance</h2>\n" + page.definitions(entries)
