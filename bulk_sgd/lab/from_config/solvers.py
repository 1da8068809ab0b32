"""Where `config.subspace` becomes a solver, and the checks of each solver's fields."""

import re
from collections.abc import Callable
from typing import NamedTuple

from bulk_sgd import checks
from bulk_sgd.lab import plugins
from bulk_sgd.solvers import thick_restart
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

_KEEP = ("all", "gap", "eigenvalue", "rate")


def validate(config):
    """Raises ValueError where the solver's name and other fields do not agree."""
    kind = _kind(config)
    kind.check(config)
    checks.one_of("config.subspace.keep", config.keep, _KEEP)
    try:
        re.compile(config.blocks)
    except re.error:
        raise ValueError(
            f"config.subspace.blocks is {config.blocks!r}; it must be '', 'layer' "
            "or a regular expression."
        ) from None
    for name, plain in (("drift", 0.0), ("keep", "all")):
        if config[name] != plain and not kind.build(config).eigenpairs:
            raise ValueError(
                f"config.subspace.{name} is {config[name]!r}; it must be {plain!r} "
                f"with config.subspace.solver = {config.solver!r}, which keeps no "
                "eigenpairs of the curvature."
            )
    if config.keep == "gap":
        why = "config.subspace.keep is 'gap'"
        checks.integer("config.subspace.rank", config.rank, 2, why=why)


def build(config, learning_rate=1.0) -> Solver:
    """The solver of a validated `config.subspace` at a learning rate, maybe traced."""
    solver = _kind(config).build(config)
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


def finds_leading(config) -> bool:
    """Whether the eigenvalues of `config.subspace` are λ_1 … λ_k of the curvature.

    Otherwise they are variances of updates, Ritz values of one update, or eigenvalues
    of diagonal blocks.
    """
    solver = build(config)
    return solver.eigenpairs and solver.whole


def every_step(config) -> str:
    """Why the solver of `config.subspace` must see every step; "" if it need not."""
    return _kind(config).every_step


def usual_matvecs(config) -> int:
    """About how many products a refresh takes."""
    return _kind(config).usual_matvecs(config)


def num_rows(config, dimension: int) -> int:
    """How many vectors a solve holds at least, beside the state of the solver.

    With blocks it is 0: each block has its own rank and size.
    """
    return 0 if config.blocks else _kind(config).num_rows(config, dimension)


class _Kind(NamedTuple):
    """One solver."""

    build: Callable  # from `config.subspace`
    check: Callable  # raises ValueError on its fields there
    num_rows: Callable = lambda config, dimension: 0
    usual_matvecs: Callable = lambda config: 2 * config.rank  # of a solve
    every_step: str = ""  # why it must see every step
    hessian_free: bool = False  # whether its eigenvalues are variances of updates


def _lanczos(config):
    # Under squared error blocks have repeated eigenvalues.
    return lanczos(
        config.tol,
        config.max_matvecs or None,
        max_basis=config.max_basis or None,
        repeated=bool(config.blocks),
        warm_start=config.warm_start,
    )


def _check_lanczos(config):
    checks.between("config.subspace.tol", config.tol, 0, 1)
    _check_bound("max_matvecs", config, 0)
    _check_bound("max_basis", config, 2)


def _check_power(config):
    _check_bound("max_matvecs", config, 0)
    checks.one_of("config.subspace.along", config.along, ("basis", "update"))
    _check_factors(config)
    for name, plain in (("along", "basis"), ("max_matvecs", 0)):
        if config.factors and config[name] != plain:
            raise ValueError(
                f"config.subspace.{name} is {config[name]!r}; with "
                f"config.subspace.factors it must be {plain!r}."
            )


def _check_streaming(config):
    checks.integer("config.subspace.columns", config.columns, 0, config.rank)
    if config.columns and config.rank % config.columns and not config.blocks:
        raise ValueError(
            f"config.subspace.columns is {config.columns}; it must divide "
            f"config.subspace.rank, {config.rank}, or be 0 for all columns."
        )
    checks.between("config.subspace.gain", config.gain, 1e-6, 1)
    checks.integer("config.subspace.every", config.every, 1)
    _check_factors(config)


def _check_factors(config):
    checks.integer("config.subspace.factors", config.factors, 0)
    if config.factors and config.blocks:
        raise ValueError(
            f"config.subspace.factors is {config.factors}; with config.subspace.blocks "
            "it must be 0, because blocks have dense vectors."
        )


def _check_krylov_filter(config):
    _check_bound("max_matvecs", config, 1)
    checks.integer("config.subspace.length", config.length, 2)
    checks.integer("config.subspace.calibrate_every", config.calibrate_every, 1)


def _check_update_pca(config):
    low, why = _least_rank(config)
    checks.integer("config.subspace.window", config.window, low, why=why)


def _check_streaming_pca(config):
    checks.between("config.subspace.update_gain", config.update_gain, 1e-6, 1)


def _check_bound(name, config, more):
    """A field is 0 for the default, or at least the rank and `more`."""
    if config[name]:
        low, formula = _least_rank(config)
        why = f"{formula}{f' + {more}' if more else ''}; 0 is the default"
        checks.integer(f"config.subspace.{name}", config[name], low + more, why=why)


def _least_rank(config) -> tuple[int, str]:
    """The smallest rank that the solver is called for, and where that comes from."""
    if config.blocks:
        return 1, "1 per block"
    return config.rank, "config.subspace.rank"


def _solve_rows(config, rank, dimension, max_basis=None):
    """The basis of a Lanczos solve for `rank` pairs, and the vector that comes next."""
    limits = config.max_matvecs or None, max_basis
    return thick_restart.bounds(min(rank, dimension), dimension, *limits)[1] + 1


_SOLVERS = {
    "lanczos": _Kind(
        _lanczos,
        _check_lanczos,
        lambda c, n: _solve_rows(c, c.rank, n, c.max_basis or None),
    ),
    "power": _Kind(
        lambda c: power(
            c.along, max_matvecs=c.max_matvecs or None, factors=c.factors or None
        ),
        _check_power,
        lambda c, n: 1 if c.factors else _solve_rows(c, c.rank, n),
        usual_matvecs=lambda c: 1 if c.along == "update" else c.rank,
    ),
    "streaming": _Kind(
        lambda c: streaming(
            c.columns, every=c.every, gain=c.gain, factors=c.factors or None
        ),
        _check_streaming,
        lambda c, n: c.columns or c.rank,
        usual_matvecs=lambda c: c.columns or c.rank,
        every_step="averages over steps",
    ),
    "krylov_filter": _Kind(
        lambda c: krylov_filter(
            c.length,
            calibrate_every=c.calibrate_every,
            max_matvecs=c.max_matvecs or None,
        ),
        _check_krylov_filter,
        lambda c, n: _solve_rows(c, c.rank + 1, n),
        every_step="knows nothing but the update that it is called with",
    ),
    "update_pca": _Kind(
        lambda c: update_pca(c.window),
        _check_update_pca,
        every_step="averages over steps",
        hessian_free=True,
    ),
    "streaming_pca": _Kind(
        lambda c: streaming_pca(c.update_gain),
        _check_streaming_pca,
        every_step="averages over steps",
        hessian_free=True,
    ),
}


def _kind(config) -> _Kind:
    return plugins.entry("config.subspace.solver", config.solver, _SOLVERS, _own)


def _own(path):
    """A function of the options that returns a `bulk_sgd.Solver`."""
    call = lambda c: plugins.call("config.subspace.solver", path, c.options)
    return _Kind(call, check=call)


HESSIAN_FREE = tuple(name for name, kind in _SOLVERS.items() if kind.hessian_free)
