"""The page of an analysis: its points in figures and a table."""

import pathlib

from bulk_sgd.lab.analysis import figures, store
from bulk_sgd.lab.report import page
from bulk_sgd.lab.report.formatting import number, percent
from bulk_sgd.lab.report.saving import save

_FIGURES = {
    "eigenvalues": (figures.eigenvalue_figure, "Sharpness and alignment",
        "Left: the largest eigenvalues of the Hessian, λ₁ darkest. Right: χ of the "
        "gradient and of the inner optimizer's next update, before any projection."),
    "density": (figures.density_figure, "Spectral density",
        "Density of all eigenvalues by stochastic Lanczos quadrature, on a log scale. "
        "Triangles: the largest eigenvalues as solved for. Filled triangles are "
        "outliers, which come before the largest ratio of two successive eigenvalues."),
    "energies": (figures.energy_figure, "Hessian, Gauss-Newton and functional part",
        "H = G + F. Left: traces, with two standard errors. Right: the share of the "
        "squared Frobenius norm in the dominant subspace of H. Labels are at the end "
        "of the last path."),
    "change": (figures.change_figure, "How the subspace turns",
        "Between a point and the one before. Left: ‖U₁ᵀU₂‖²/k. Right: ‖(P₁ − P₂)g‖/‖g‖ "
        "for the gradient g, and χ of the way between the points in the earlier "
        "subspace."),
    "blocks": (figures.block_figure, "Layer by layer",
        "Left: the largest eigenvalue of each diagonal block of the Hessian. Right: "
        "its share of the dominant eigenvectors' squared length. Labels are at the end "
        "of the last path."),
    "rank_profile": (figures.rank_figure, "Rank of the eigenvectors",
        "At the last point: the share of squared length that remains if each matrix of "
        "an eigenvector is cut to a lower rank. Left: the k eigenvectors, the first "
        "darkest. Right: each matrix, averaged over the eigenvectors."),
    "slices": (
        figures.slice_figure, "The loss along and across the dominant directions",
        "Around the last point, over distances in parameter space. To second order the "
        "loss doubles at the edge along u₁."),
}  # fmt: skip


def write_report(folder) -> pathlib.Path:
    """Writes the page of an analysis, and its figures as PNG and PDF beside it.

    Args:
      folder: the folder where `analyze` wrote `analysis.json`.

    Returns:
      The path of the page, `folder/index.html`.

    Raises:
      FileNotFoundError: there is no analysis.
      ValueError: it has no points.
    """
    folder = pathlib.Path(folder)
    found = store.read(folder)
    points = found["points"]
    if not points:
        raise ValueError(f"{folder / store.FILE} has no points to report on.")
    body = [_facts(found)]
    for name, (draw, heading, caption) in _FIGURES.items():
        if name in ("slices", "rank_profile") and name not in points[-1]:
            continue
        if name == "change" and not any(point["change"] for point in points):
            continue
        image = save(draw(points), folder / name)
        last = f"{heading}, from {points[0]['name']} to {points[-1]['name']}."
        body.append(f"<h2>{heading}</h2>" + page.figure(heading, caption, last, image))
    body.append("<h2>All points</h2>" + _table(points))
    body.append(page.details("Settings", found["settings"]))
    title = page.text((found.get("run") or {}).get("name") or "Training")
    return page.write(folder, f"{title}: curvature", "\n".join(body))


def _facts(found):
    points = found["points"]
    failed = [point["name"] for point in points if not point["converged"]]
    facts = [
        f"{len(points)} points",
        f"{points[0]['num_params']:,} parameters",
        f"k = {found['settings']['rank']}",
        f"{sum(point['matvecs'] for point in points):,} matvecs",
        f"{sum(point['seconds'] for point in points):,.0f} seconds",
        found.get("device") or "",
    ]
    notes = list(found.get("notes", ()))
    if failed:
        notes.append(f"The eigenpairs did not converge at {', '.join(failed)}.")
    return page.facts(facts) + "".join(map(page.note, notes))


def _table(points):
    rows = []
    for point in points:
        hessian, change = point["energies"]["hessian"], point["change"] or {}
        rows.append({
            "point": point["name"],
            "step": f"{point['step']:,}",
            "loss": _show(point["loss"]),
            "λ₁": _show(point["eigenvalues"][0]),
            "outliers": str(point["outliers"] or "–"),
            "tr H": f"{_show(hessian['trace'])} ± {_show(hessian['trace_error'])}",
            "share of H": _show(hessian["frobenius_share"], percent),
            "χ of gradient": _show(point["alignment"]["gradient"]),
            "χ of update": _show(point["alignment"].get("update")),
            "overlap": _show(change.get("overlap")),
            "drift": _show(change.get("drift")),
            "matvecs": f"{point['matvecs']:,}",
        })  # fmt: skip
    return page.table("All points", [*rows[0]], [[*row.values()] for row in rows])


def _show(value, how=number):
    return "–" if value is None else how(value)
