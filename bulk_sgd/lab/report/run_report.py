"""Turns the workdir of a run into one HTML page that explains what happened."""

import json
import math
import pathlib

import numpy as np

from bulk_sgd.lab.from_config import solvers
from bulk_sgd.lab.report import figures, page
from bulk_sgd.lab.report.narrative import chi, happened, number, percent, state, whose
from bulk_sgd.lab.report.results import PREFIX, Run, read_run
from bulk_sgd.lab.report.style import arm_styles, save


def write_report(workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes the report of a run, finished or not, into `workdir/report`.

    Args:
      workdir: the folder the run wrote to.

    Returns:
      The path of the page, `workdir/report/index.html`. The figures `loss`,
      `alignment`, `eigenvalues` and `cost` lie beside it as PNG and PDF.

    Raises:
      FileNotFoundError: run.json or metrics.jsonl is missing.
      ValueError: run.json cannot be read, or there is no metric row.

    Example:
      >>> write_report("runs/mnist")  # doctest: +SKIP
      PosixPath('runs/mnist/report/index.html')
    """
    run = read_run(workdir)
    folder = run.workdir / "report"
    folder.mkdir(exist_ok=True)
    images = {
        "loss": save(figures.loss_figure(run), folder / "loss"),
        "alignment": save(figures.alignment_figure(run), folder / "alignment"),
        "eigenvalues": save(figures.eigenvalue_figure(run), folder / "eigenvalues"),
        "cost": save(figures.cost_figure(run), folder / "cost"),
    }
    path = folder / "index.html"
    path.write_text(render_page(run, images), encoding="utf-8")
    return path


def render_page(run: Run, images: dict[str, bytes]) -> str:
    """The page as HTML, with `images` (PNG bytes by figure name) embedded."""
    title = page.text(run.info.get("name") or "Run")
    notes = "".join(f'<p class="note">{page.text(note)}</p>\n' for note in state(run))
    story = "".join(f"<li>{page.text(sentence)}</li>\n" for sentence in happened(run))
    shown = "".join(_figure(run, name, image) for name, image in images.items())
    return page.document(
        title,
        f"""<p class="facts">{page.text(_facts(run))}</p>
{notes}{_explanation(run)}
<h2>What happened</h2>
<ul>
{story}</ul>
{shown}<h2>Final figures</h2>
{_table(run)}
<h2>Provenance</h2>
{_provenance(run)}""",
    )


def _facts(run):
    info = run.info
    facts = [
        f"{info['num_params']:,} parameters" if info.get("num_params") else "",
        f"{info['num_train']:,} training examples" if info.get("num_train") else "",
        f"k = {run.rank}" if run.rank else "",
        f"learning rate {info['learning_rate']:g}" if info.get("learning_rate") else "",
        f"loss: {info['loss_label']}" if info.get("loss_label") else "",
        _subspace(info),
    ]
    return " · ".join(filter(None, facts))


def _subspace(info):
    """What the subspace is that of, and how it is kept."""
    space = (info.get("config") or {}).get("subspace")
    if not space:
        return ""
    by = " by block" if space.get("blocks") else ""
    if space["solver"] in solvers.HESSIAN_FREE:
        return f"principal components of updates, {space['solver']}{by}"
    operator = {"gauss_newton": "Gauss-Newton matrix"}.get(
        space["curvature"], "Hessian"
    )
    if space.get("preconditioned"):
        operator = f"preconditioned {operator}"
    of = {
        "full": "of the full training set",
        "subset": f"of {space['subset_size']:,} training examples",
        "batch": "of the current mini-batch",
    }[space["data"]]
    along = space["solver"] == "power" and space.get("along") == "update"
    how = space["solver"] + " along the update" * along + by
    if space.get("drift"):
        how += f" on drift above {space['drift']:g}, probed"
        steps = _every(space["refresh_every"] * space["probe_every"])
    else:
        steps = _every(space["refresh_every"])
    kept = {
        "gap": ", as far as the largest gap",
        "eigenvalue": f", eigenvalues above {space.get('threshold')}",
        "rate": f", eigenvalues above {space.get('threshold')} / η",
    }.get(space.get("keep"), "")
    return f"{operator} {of}, {how} {steps}{kept}"


def _every(steps):
    return "every step" if steps == 1 else f"every {steps:,} steps"


def _explanation(run):
    k = run.rank or "few"
    fork = (
        "All arms below start from the weights that one common prefix reached, so "
        "they differ in nothing but (a, b)."
    )
    return f"""<p>The loss of a network is sharply curved along a few directions and
nearly flat along all others: the {k} sharpest, the top eigenvectors of its Hessian,
span the <em>dominant subspace</em>, and what is orthogonal to them is the
<em>bulk</em>. {chi(run)} of an update is the length of its part in the dominant
subspace over its whole length: 1 if it lies within, 0 if it avoids it. Each method
multiplies the dominant part of every update by a and the bulk part by b: SGD keeps
both, (a, b) = (1, 1), Dom-SGD only the sharp part, (1, 0), and Bulk-SGD only the flat
part, (0, 1). {fork}</p>"""


def _figure(run, name, image):
    heading, caption, alt = _describe(run, name)
    return f"<h2>{heading}</h2>\n" + page.figure(heading, caption, alt, image)


def _describe(run, name):
    """Heading, caption and alternative text of a figure."""
    shown = [arm for arm in run.arms if run.rows.get(arm)] or [PREFIX]
    arms = [run.summary(arm) for arm in shown]
    who = ", ".join(arm.label for arm in arms)

    def values(show):
        return f" In numbers: {'; '.join(f'{a.label} {show(a)}' for a in arms)}."

    k = run.rank or "k"
    threshold = figures.stability_threshold(run)
    c = f"{run.stability:g}"
    known = (
        f" {c}/η = {threshold:.4g} is the stability threshold of {whose(run)}; an arm "
        f"that scales the dominant part by a has its own at {c}/(aη)."
    )
    eigenvalues = np.concatenate([run.eigenvalues(a).ravel() for a in run.rows])
    eigenvalues = eigenvalues[np.isfinite(eigenvalues)]
    if not figures.threshold_in_range(threshold, eigenvalues):
        known += " It lies outside the range shown."
    changes = any(np.ptp(run.rates(name)) > 0 for name in run.rows)
    if changes and math.isfinite(run.stability):
        known = f" Dashed: the stability threshold {c}/η of {whose(run)}."
    elif not math.isfinite(threshold):
        known = ""
    diverged = any(arm.status == "diverged" for arm in arms)
    crossed = (
        " An × marks the last finite point of an arm that diverged, or where it leaves "
        "the figure; the axes are chosen for the others."
    )
    return {
        "loss": (
            "Loss and accuracy",
            "Training loss over the whole training set, on a log scale, and test "
            "accuracy, whose axis is cut to what follows the switch."
            + diverged
            * crossed,
            f"Training loss and test accuracy against the step: {who}."
            + values(lambda a: f"{number(a.train_loss)}, {percent(a.test_accuracy)}"),
        ),
        "alignment": (
            "Alignment with the dominant subspace",
            f"{chi(run)} of the update before it is projected (left) and of the "
            "gradient over the whole training set (right). Thin lines: as logged; "
            "thick lines: running mean over about a twenty-fifth of the rows.",
            f"Alignment from 0 to 1 of update and full gradient: {who}."
            + values(lambda a: f"mean {number(a.alignment)}"),
        ),
        "eigenvalues": (
            "Sharpness",
            f"The {k} largest Hessian eigenvalues, λ₁ darkest, along training; the "
            "prefix in grey." + known,
            f"The largest Hessian eigenvalues against the step: {who}."
            + values(lambda a: f"λ₁ = {number(a.sharpness)}"),
        ),
        "cost": (
            "Cost",
            "Wall time spent in curvature (dark: eigenpairs and what is measured with "
            "them) and in everything else (light). A matvec is one product of the "
            "Hessian with one vector.",
            f"Wall time of {who}."
            + values(lambda a: f"{a.seconds:.0f} seconds, {a.matvecs:,} matvecs"),
        ),
    }[name]


def _table(run):
    heads = [
        "arm",
        "formula",
        "status",
        "steps",
        "training loss",
        "loss / loss at switch",
        "test accuracy",
        f"mean {chi(run)}",
        "λ₁",
        "ηλ₁",
        "matvecs",
        "failed refreshes",
        "seconds",
        "curvature share",
    ]
    arms = [run.summary(arm) for arm in run.arms]
    colors = {name: style.color for name, style in arm_styles(arms).items()}
    summaries = (run.summary(PREFIX), *arms)
    rows = [
        [
            s.label,
            s.formula,
            s.status,
            f"{s.steps:,}",
            number(s.train_loss),
            number(s.loss_ratio),
            percent(s.test_accuracy, 2),
            number(s.alignment),
            number(s.sharpness),
            number(s.sharpness_ratio),
            f"{s.matvecs:,}",
            f"{s.failed_refreshes:,}",
            f"{s.seconds:,.1f}",
            percent(s.curvature_share),
        ]
        for s in summaries
    ]
    shades = [colors.get(s.name, figures.PREFIX_STYLE.color) for s in summaries]
    return f"""{page.table("Final figures", heads, rows, shades)}
<p class="facts">Losses, accuracies and eigenvalues are the last finite values; steps,
matvecs and seconds count from the switch; mean {chi(run)} is that of the updates after
the switch, before they are projected.</p>"""


def _provenance(run):
    info = run.info
    versions = info.get("versions") or {}
    seconds = info.get("seconds")
    entries = {
        "status": info.get("status"),
        "command": info.get("command"),
        "git": info.get("git"),
        "device": info.get("device"),
        "versions": ", ".join(f"{name} {v}" for name, v in versions.items()),
        "started": info.get("started"),
        "ended": info.get("ended"),
        "seconds": f"{seconds:,.1f}" if isinstance(seconds, (int, float)) else None,
    }
    items = "".join(
        f"<dt>{name}</dt><dd>{page.text(value or 'not recorded')}</dd>\n"
        for name, value in entries.items()
    )
    config = json.dumps(info.get("config"), indent=2, ensure_ascii=False)
    return f"""<dl>
{items}</dl>
<details>
<summary>Configuration</summary>
<pre>{page.text(config)}</pre>
</details>"""
