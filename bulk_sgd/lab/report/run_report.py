"""Turns the workdir of a run into one HTML page that explains what happened."""

import math
import pathlib

import numpy as np

from bulk_sgd.lab.files.record import make_folder
from bulk_sgd.lab.from_config import solvers, unused
from bulk_sgd.lab.report import page, run_figures, step_figures
from bulk_sgd.lab.report.eigenvalue_figure import eigenvalue_figure, stability_threshold
from bulk_sgd.lab.report.formatting import chi, exact, number, percent
from bulk_sgd.lab.report.narrative import happened, state
from bulk_sgd.lab.report.results import PREFIX, last_finite, read_run
from bulk_sgd.lab.report.saving import save

_FIGURES = {
    "loss": (run_figures.loss_figure, "Loss and accuracy"),
    "alignment": (run_figures.alignment_figure, "Alignment with the dominant subspace"),
    "eigenvalues": (eigenvalue_figure, "Sharpness"),
    "cut": (run_figures.cut_figure, "Energy outside of the frames"),
    "changes": (step_figures.change_figure, "What the next step does to the loss"),
    "step_sharpness": (step_figures.step_sharpness_figure, "Sharpness along the step"),
    "eigenvectors": (step_figures.eigenvector_figure, "How the eigenvectors turn"),
    "ranks": (step_figures.rank_figure, "Ranks of the eigenvectors by matrix"),
    "own": (run_figures.own_figure, "Measured by your own functions"),
    "cost": (run_figures.cost_figure, "Cost"),
}


_CURVATURES = {
    "hessian": "Hessian",
    "gauss_newton": "Gauss-Newton matrix",
    "functional_hessian": "functional Hessian",
}
_OF_STEPS = "changes", "step_sharpness", "eigenvectors"


def figures_of(run) -> dict:
    """The functions that draw what a run has, with their headings, by name."""
    stepped = dict.fromkeys(_OF_STEPS, run.is_logged("step/measured_whole"))
    ranks = step_figures.profiled(run) is not None
    has = {
        "cut": run.is_logged("energy_lost"),
        "own": bool(run.own or run.own_lists),
        "ranks": ranks,
    } | stepped
    return {name: x for name, x in _FIGURES.items() if has.get(name, True)}


def write_report(workdir: str | pathlib.Path, out=None) -> pathlib.Path:
    """Writes the report of a run, see `write.write_report`."""
    run = read_run(workdir)
    folder = make_folder(out or run.workdir / "report", "out")
    captions, figures = _captions(run), []
    arms = [run.summary(arm).label for arm in run.arms if run.rows.get(arm)]
    for name, (draw, heading) in figures_of(run).items():
        image = save(draw(run), folder / name)
        alt = f"{heading} of {', '.join(arms) or 'the prefix'}; numbers in the table."
        figures.append(f"<h2>{heading}</h2>\n")
        figures.append(page.figure(heading, captions[name], alt, image))
    title = page.text(run.info.get("name") or "Run")
    body = f"""{_explanation(run)}
<h2>What happened</h2>
<ul>
{"".join(f"<li>{page.text(fact)}</li>" for fact in happened(run))}
</ul>
{"".join(figures)}<h2>Final numbers</h2>
{_table(run)}
<h2>Provenance</h2>
{_provenance(run.info)}"""
    head = page.facts(_facts(run)) + "".join(map(page.note, state(run)))
    return page.write(folder, title, head + body)


def _facts(run):
    info = run.info
    return [
        f"{info['num_params']:,} parameters" if info.get("num_params") else "",
        f"{info['num_train']:,} training examples" if info.get("num_train") else "",
        f"k = {run.rank}" if run.rank else "",
        f"learning rate {exact(info['learning_rate'])}"
        if info.get("learning_rate")
        else "",
        f"loss: {info['loss_label']}" if info.get("loss_label") else "",
        _subspace((info.get("config") or {}).get("subspace")),
    ]


def _subspace(space):
    """Which subspace the arms scale, and how the run keeps it."""
    if not space:
        return ""
    what = "principal components of updates"
    if space["solver"] not in solvers.HESSIAN_FREE:
        data = {
            "full": "the full training set",
            "subset": f"{space['subset_size']:,} training examples",
            "batch": "the current mini-batch",
        }[space["data"]]
        if space["data"] == "batch" and space.get("batch_fraction", 1) < 1:
            data = f"{percent(space['batch_fraction'])} of {data}"
        what = f"{_CURVATURES[space['curvature']]} of {data}"
    drift, threshold = space.get("drift"), exact(space.get("threshold", 1.0))
    every = space["refresh_every"] * (space["probe_every"] if drift else 1)
    if space["solver"] == "streaming":
        every *= space.get("every", 1)
    facts = [
        "preconditioned " * bool(space.get("preconditioned")) + what,
        space["solver"],
        space.get("along") == "update" and "along the update",
        space.get("factors") and f"factors {space['factors']}",
        space.get("blocks") and f"blocks {space['blocks']}",
        drift and f"on drift above {exact(drift)}, probed",
        f"every {every:,} steps" if every > 1 else "every step",
        {
            "gap": "up to the largest gap",
            "eigenvalue": f"eigenvalues above {threshold}",
            "rate": f"eigenvalues above {threshold} / η",
        }.get(space.get("keep")),
    ]
    return ", ".join(filter(None, facts))


def _explanation(run):
    return f"""<p>The loss of a network is sharply curved along a few directions and
nearly flat along all others. The {run.rank or "few"} sharpest directions, the top
eigenvectors of its Hessian, span the <em>dominant subspace</em>; everything orthogonal
to them is the <em>bulk</em>. {chi(run.rank)} of an update is the length of its dominant
part over its whole length: 1 inside the dominant subspace, 0 in the bulk. Each arm
multiplies the dominant part of every update by a and the bulk part by b: SGD keeps
both, (a, b) = (1, 1), Dom-SGD only the sharp part, (1, 0), and Bulk-SGD only the flat
part, (0, 1). All arms start from the weights that one common prefix reached, so they
differ in (a, b) alone.</p>"""


def _captions(run):
    measured = "alignment_update", "alignment_gradient"
    smoothed = any(run_figures.is_smoothed(run, key) for key in measured)
    both = run.is_logged("alignment_gradient")
    before = bool(np.isfinite(run.eigenvalues(PREFIX)).any())
    right = run_figures.measured_on_test(run)[2].partition(" (")[0]
    diverged = any(run.summary(arm).status == "diverged" for arm in run.arms)
    return {
        "loss": "Training loss over the whole training set, on a log scale, and "
        f"{right}, on an axis that fits the arms."
        + " An × marks the last finite point of an arm that diverged, or where it "
        "leaves the figure." * diverged,
        "alignment": f"{chi(run.rank)} of the update before it is projected"
        + " (left) and of the gradient over the whole training set (right)" * both
        + "."
        + " Thin lines: as logged; thick lines: running mean over about a twenty-fifth "
        "of the rows." * smoothed,
        "eigenvalues": f"The {run.rank or 'k'} largest Hessian eigenvalues along "
        f"training, λ₁ darkest{', the prefix in grey' * before}.{_threshold(run)}"
        f"{_data(run)}",
        "cut": "Basis vectors are stored in factors: in each matrix of parameters they "
        "share a few directions. The curve is the share of the squared length of "
        "curvature products outside of these directions: a running average over steps, "
        "a mean over vectors.",
        "changes": "How the loss changes if only the dominant part (left) or only the "
        "bulk part (right) of the next update is added, not scaled: measured (lines) "
        "and predicted to second order (pale). Below 0 the loss falls.",
        "step_sharpness": "Top: critical sharpness 2/η_c, with η_c the rate above "
        "which the step raises the loss (pale: gᵀHg/‖g‖² of the gradient). Middle: "
        "uᵀHu/‖u‖² of the update. Bottom: the same for each mini-batch and its own "
        "update (pale: its own gradient), mean over mini-batches. Dashed: 2/η, "
        "above which the step raises the loss (top), and the optimizer's stability "
        "threshold; dotted: that of small batches, where known.",
        "eigenvectors": "Left: 1 − ‖U₁ᵀU₂‖²/k between the subspaces of a row and the "
        "row before (pale: mean of 1 − |⟨uᵢ, uᵢ′⟩| over the eigenvectors). It is 0 if "
        "nothing turns. Right: localization n Σⱼ vⱼ⁴ / 3, mean over the eigenvectors. "
        "It is 1 for random vectors, and n/3 for vectors on a single parameter.",
        "ranks": _profiled(run),
        "own": "One panel per number or list, along training; the first entry of a "
        "list is darkest.",
        "cost": "Wall time spent in curvature (dark: eigenpairs and what is measured "
        "with them) and in everything else (light). A matvec is one product of the "
        "Hessian with one vector.",
    }


def _profiled(run):
    found = step_figures.profiled(run)
    if found is None:
        return ""
    arm, row = found
    return (
        f"{run.summary(arm).label}, step {row['step']:,}: the share of the squared "
        "length of the eigenvectors that remains if a matrix is cut to a low rank, "
        "averaged over the eigenvectors."
    )


def _data(run):
    """A sentence on the data of the eigenvalues; those of the table's λ₁ differ."""
    space = (run.info.get("config") or {}).get("subspace") or {}
    of = {"subset": "a subset of the training set", "batch": "mini-batches"}
    of = of.get(space.get("data"), "the training set as of the last refresh")
    return (
        f" They belong to {of}; λ₁ in the table comes from a separate solve on the "
        "whole training loss at the last step."
    )


def _threshold(run):
    c, threshold = exact(run.stability), stability_threshold(run)
    if math.isfinite(threshold):
        return (
            f" Dashed, where it is in range: the stability threshold {c}/η = "
            f"{number(threshold)} of the optimizer. An arm that scales the dominant "
            f"part by a has its own at {c}/(aη)."
        )
    changes = any(np.ptp(run.rates(name)) > 0 for name in run.rows)
    if changes and math.isfinite(run.stability):
        return f" Dashed: the stability threshold {c}/η of the optimizer."
    return ""


def _table(run):
    columns = {
        "arm": lambda s: s.label,
        "formula": lambda s: s.formula,
        "status": lambda s: s.status,
        "steps": lambda s: f"{s.steps:,}",
        "training loss": lambda s: number(s.train_loss),
        "loss / loss at fork": lambda s: number(s.loss_ratio),
        **_test_column(run),
        f"mean {chi(run.rank)}": lambda s: number(s.alignment),
        "λ₁": lambda s: number(s.sharpness),
        "ηλ₁": lambda s: number(s.sharpness_ratio),
        "matvecs": lambda s: f"{s.matvecs:,}",
        "failed refreshes": lambda s: f"{s.failed_refreshes:,}",
        "seconds": lambda s: number(s.seconds),
        "curvature share": lambda s: percent(
            s.seconds_curvature / (s.seconds or math.nan)
        ),
    }
    for key in run.own:
        last = lambda s, key=key: number(last_finite(run.series(s.name, key)))
        columns[key.removeprefix("own/")] = last
    summaries = [run.summary(name) for name in (PREFIX, *run.arms)]
    rows = [[show(s) for show in columns.values()] for s in summaries]
    styles = run_figures.run_styles(run)
    colors = [styles[s.name].color for s in summaries]
    return f"""{page.table("Final numbers", list(columns), rows, colors)}
<p class="facts">Losses, accuracies, eigenvalues and measurements of your own are the
last finite values. Steps, matvecs and seconds count from the fork. Mean
{chi(run.rank)} is over the updates after the fork, before they are projected. A refresh
that failed kept the previous subspace.</p>"""


def _test_column(run):
    if run_figures.measured_on_test(run)[0] == "test_accuracy":
        return {"test accuracy": lambda s: percent(s.test_accuracy, 4)}
    last = lambda s: last_finite(run.series(s.name, "test_loss"))
    return {"test loss": lambda s: number(last(s))}


def _provenance(info):
    names = "git", "device", "started", "ended"
    entries = {"status": info.get("status"), **page.commands([info])}
    entries |= {name: info.get(name) for name in names}
    entries["versions"] = page.versions(info)
    if isinstance(info.get("seconds"), (int, float)):
        entries["seconds"] = number(info["seconds"])
    head = "Configuration, without fields that this run does not use"
    config = unused.without(info.get("config") or {})
    return page.definitions(entries) + page.details(head, config)
