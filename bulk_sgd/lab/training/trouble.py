"""What is wrong with a subspace at a row of metrics, in one sentence."""

from bulk_sgd.lab.from_config import solvers


def of(row: dict, space) -> tuple[str, str]:
    """A word for the trouble and a sentence about it; both empty if all is well."""
    if row["kept"] == 0:
        return "empty", (
            f"the subspace is empty at step {row['step']}, so that the whole update is "
            f"bulk (config.subspace.keep is {space.keep!r}, config.subspace.threshold "
            f"{space.threshold:g})."
        )
    if row["kept"] is None and row["failed_refreshes"]:
        sentence = "no refresh has converged, so there is no subspace yet"
        return "none", f"{sentence}{_advice(space)}."
    return "", ""


def _advice(space) -> str:
    """What to raise where solves fail; nothing for a solver that does none."""
    if space.solver in ("streaming", *solvers.HESSIAN_FREE):
        return ""
    limit = space.max_matvecs or "10 rank + 50 by default"
    advice = f"; raise config.subspace.max_matvecs ({limit})"
    if space.solver == "lanczos":
        advice += f" or config.subspace.tol ({space.tol:g})"
    return advice
