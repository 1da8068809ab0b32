"""Solvers by name, from the fields of `config.subspace`."""

import re

from bulk_sgd import checks
from bulk_sgd.solvers.adaptive import adaptive
from bulk_sgd.solvers.blockwise import blockwise
from bulk_sgd.solvers.drift import on_drift
from bulk_sgd.solvers.krylov import krylov_filter
from bulk_sgd.solvers.lanczos import lanczos
from bulk_sgd.solvers.power import power
from bulk_sgd.solvers.solver import Solver
from bulk_sgd.solvers.streaming import streaming
from bulk_sgd.solvers.streaming_pca import streaming_pca
from bulk_sgd.solvers.update_pca import update_pca

_BUILDERS = {
    "lanczos": lambda c: lanczos(
        c.tol,
        c.max_matvecs or None,
        max_basis=c.max_basis or None,
        repeated=bool(c.blocks),  # under squared error blocks have repeated eigenvalues
        warm_start=c.warm_start,
    ),
    "power": lambda c: power(c.along, max_matvecs=c.max_matvecs or None),
    "streaming": lambda c: streaming(c.columns, gain=c.gain),
    "krylov_filter": lambda c: krylov_filter(
        c.length,
        calibrate_every=c.calibrate_every,
        max_matvecs=c.max_matvecs or None,
    ),
    "update_pca": lambda c: update_pca(c.window),
    "streaming_pca": lambda c: streaming_pca(c.update_gain),
}

# These must see every step, for this reason.
EVERY_STEP = {
    "streaming": "averages over steps",
    "streaming_pca": "averages over steps",
    "update_pca": "averages over steps",
    "krylov_filter": "knows nothing but the update that it is called with",
}
# Their eigenvalues are variances of updates, and their residuals nothing.
HESSIAN_FREE = ("streaming_pca", "update_pca")

_KEEP = ("all", "gap", "eigenvalue", "rate")


def validate(config):
    """Raises ValueError on a solver field of `config.subspace` out of its range."""
    checks.one_of("config.subspace.solver", config.solver, _BUILDERS)
    _CHECKS[config.solver](config)
    checks.between("config.subspace.drift", config.drift, 0, 1)
    checks.integer("config.subspace.probe_every", config.probe_every, 1)
    checks.one_of("config.subspace.keep", config.keep, _KEEP)
    try:
        re.compile(config.blocks)
    except re.error:
        raise ValueError(
            f"config.subspace.blocks is {config.blocks!r}; it must be '', 'layer' "
            "or a regular expression."
        ) from None
    checks.at_least("config.subspace.threshold", config.threshold, 0)
    for name, plain in (("drift", 0.0), ("keep", "all")):
        if config[name] != plain and not _BUILDERS[config.solver](config).eigenpairs:
            raise ValueError(
                f"config.subspace.{name} is {config[name]!r}; it must be {plain!r} "
                f"with config.subspace.solver = {config.solver!r}, which keeps no "
                "eigenpairs of the curvature."
            )
    if config.keep == "gap":
        why = "config.subspace.keep is 'gap'"
        checks.integer("config.subspace.rank", config.rank, 2, why=why)


def finds_leading(config) -> bool:
    """Whether eigenvalues with `config.subspace` are λ_1 … λ_k of the curvature.

    They are not where they are variances of updates, Ritz values of one update, or
    eigenvalues of diagonal blocks.
    """
    return build(config).eigenpairs and not config.blocks


def build(config, learning_rate=1.0) -> Solver:
    """The solver of a validated `config.subspace` at a learning rate, maybe traced."""
    solver = _BUILDERS[config.solver](config)
    if config.drift:
        solver = on_drift(solver, config.drift, every=config.probe_every)
    if config.blocks:
        solver = blockwise(solver, config.blocks)
    if config.keep == "gap":
        return adaptive(solver)
    if config.keep != "all":
        unit = learning_rate if config.keep == "rate" else 1.0
        return adaptive(solver, config.threshold, learning_rate=unit)
    return solver


def _least_rank(config) -> tuple[int, str]:
    """The least rank that a solver may be called for, and what it is that of."""
    if config.blocks:
        return 1, "1 per block"
    return config.rank, "config.subspace.rank"


def _check_lanczos(config):
    checks.between("config.subspace.tol", config.tol, 0, 1)
    _check_bound("max_matvecs", config, 0)
    _check_bound("max_basis", config, 2)


def _check_bound(name, config, more):
    """A field that is 0 for the default, or at least the rank and so many more."""
    if config[name]:
        low, formula = _least_rank(config)
        why = f"{formula}{f' + {more}' if more else ''}; 0 is the default"
        checks.integer(f"config.subspace.{name}", config[name], low + more, why=why)


def _check_power(config):
    _check_bound("max_matvecs", config, 0)
    checks.one_of("config.subspace.along", config.along, ("basis", "update"))


def _check_streaming(config):
    checks.integer("config.subspace.columns", config.columns, 0, config.rank)
    if config.columns and config.rank % config.columns and not config.blocks:
        raise ValueError(
            f"config.subspace.columns is {config.columns}; it must divide "
            f"config.subspace.rank, {config.rank}, or be 0 for all columns."
        )
    checks.between("config.subspace.gain", config.gain, 1e-6, 1)


def _check_krylov(config):
    _check_bound("max_matvecs", config, 1)
    checks.integer("config.subspace.length", config.length, 2)
    checks.integer("config.subspace.calibrate_every", config.calibrate_every, 1)


def _check_update_pca(config):
    low, why = _least_rank(config)
    checks.integer("config.subspace.window", config.window, low, why=why)


def _check_streaming_pca(config):
    checks.between("config.subspace.update_gain", config.update_gain, 1e-6, 1)


_CHECKS = {
    "lanczos": _check_lanczos,
    "power": _check_power,
    "streaming": _check_streaming,
    "krylov_filter": _check_krylov,
    "update_pca": _check_update_pca,
    "streaming_pca": _check_streaming_pca,
}
