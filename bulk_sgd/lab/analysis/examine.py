"""What is measured at one point of a training, and between it and the one before."""

import functools
import time

import jax
import jax.numpy as jnp

from bulk_sgd.curvature import blocks
from bulk_sgd.curvature.hessian import CURVATURES, hessian
from bulk_sgd.curvature.objective import Objective
from bulk_sgd.curvature.operators import as_pytree
from bulk_sgd.lab.analysis.landscape import slices
from bulk_sgd.lab.analysis.point import Known, Point, Settings
from bulk_sgd.lab.files import metrics
from bulk_sgd.lab.training import measures
from bulk_sgd.linalg import basis
from bulk_sgd.solvers.adaptive import before_gap
from bulk_sgd.solvers.lanczos import top_eigenpairs
from bulk_sgd.spectra.block_eigenpairs import block_eigenpairs
from bulk_sgd.spectra.density import spectral_density
from bulk_sgd.spectra.energies import energies


def examine(point: Point, value_fn, settings: Settings, before=None, tick=None):
    """All measurements at one point, as `docs/analysis.md` describes; and its `Known`.

    `before` is the `Known` of the point to compare it with, or None; `tick` is called
    with the name of each part that is done.
    """
    started, tick = time.perf_counter(), tick or (lambda part: None)
    value_fn = as_pytree(value_fn)
    params = jax.tree.map(jnp.asarray, point.params)
    keys, mode = _keys(settings), settings.mode
    found = _spectrum(
        value_fn, params, point.update, keys["eigenpairs"], keys["energies"],
        settings.tol, rank=settings.rank, num_probes=settings.trace_probes, mode=mode,
    )  # fmt: skip
    subspace, operators = found["subspace"], found["energies"]
    probes = settings.rank + settings.trace_probes
    spent = subspace.num_matvecs + probes * len(operators)
    result = _spectral(point, params, found, before)
    tick("spectrum")

    matvec = hessian(value_fn, params, mode=mode)
    steps = min(settings.density_steps, basis.size(params))
    density = spectral_density(
        matvec, params, settings.density_probes, steps, key=keys["density"]
    )
    spent = spent + density.num_matvecs
    result["density"] = {"nodes": density.nodes, "weights": density.weights}
    result["trace"] = density.trace._asdict()
    tick("density")

    rank, tol, by = settings.block_rank, settings.tol, settings.by
    pairs = block_eigenpairs(matvec, params, rank, tol, by=by, key=keys["blocks"])
    result["blocks"] = _blocks(pairs, params, subspace, by)
    spent = spent + sum(pair.num_matvecs for pair in pairs.values())
    tick("blocks")

    if settings.slice_points:
        result["slices"] = slices(value_fn, params, found, settings, keys["slices"])
    tick("slices")
    result["matvecs"] = spent
    result["seconds"] = round(time.perf_counter() - started, 3)
    return metrics.plain(result), Known(point.name, params, subspace)


def _spectral(point, params, found, before):
    """What `_spectrum` found at a point, by the keys of the result."""
    subspace, values = found["subspace"], found["subspace"].eigenvalues
    change = None
    if before:
        known = before.params, before.subspace, params, subspace, found["gradient"]
        change = {"since": before.name, **_compare(*known)}
    return {
        "name": point.name,
        "path": point.path,
        "step": point.step,
        "num_params": basis.size(params),
        **{key: found[key] for key in ("loss", "gradient_norm", "params_norm")},
        "eigenvalues": values,
        "residuals": subspace.residuals,
        "converged": subspace.converged,
        # One eigenvalue alone has no gap behind it.
        "outliers": jnp.sum(before_gap(values)) if len(values) > 1 else None,
        "alignment": found["alignment"],
        "energies": {name: x._asdict() for name, x in found["energies"].items()},
        "rank_profile": found["rank_profile"],
        "change": change,
    }


def locate(point: Point, value_fn, settings: Settings) -> Known:
    """The `Known` of a point that was measured before."""
    params = jax.tree.map(jnp.asarray, point.params)
    key, value_fn = _keys(settings)["eigenpairs"], as_pytree(value_fn)
    sizes = {"rank": settings.rank, "mode": settings.mode}
    subspace = _eigenpairs(value_fn, params, key, settings.tol, **sizes)
    return Known(point.name, params, subspace)


def _keys(settings):
    """A PRNG key for each part."""
    parts = "eigenpairs", "energies", "density", "blocks", "slices"
    keys = jax.random.split(jax.random.key(settings.seed), len(parts))
    return dict(zip(parts, keys))


def _hessian_eigenpairs(value_fn, params, key, tol, *, rank, mode):
    matvec = hessian(value_fn, params, mode=mode)
    start_key, key = jax.random.split(key)
    start = basis.random_normal(start_key, params)
    return top_eigenpairs(matvec, start, rank, tol, key=key)


_eigenpairs = jax.jit(_hessian_eigenpairs, static_argnames=("rank", "mode"))


@functools.partial(jax.jit, static_argnames=("rank", "num_probes", "mode"))
def _spectrum(value_fn, params, update, key, probe_key, tol, *, rank, num_probes, mode):
    with jax.default_matmul_precision("highest"):
        loss, gradient = jax.value_and_grad(value_fn)(params)
        subspace = _hessian_eigenpairs(value_fn, params, key, tol, rank=rank, mode=mode)
        names = [*CURVATURES] if isinstance(value_fn, Objective) else []
        operators = {
            name: CURVATURES[name](value_fn, params, mode=mode)
            for name in names or ["hessian"]
        }
        vectors = {"gradient": gradient} | (
            {} if update is None else {"update": update}
        )
        return {
            "loss": loss,
            "gradient": basis.widen(gradient),
            "gradient_norm": basis.norm(gradient),
            "params_norm": basis.norm(params),
            "subspace": subspace,
            "alignment": {name: subspace.alignment(v) for name, v in vectors.items()},
            "rank_profile": measures.ranks(params, subspace),
            "energies": {
                name: energies(operator, subspace, num_probes, key=probe_key)
                for name, operator in operators.items()
            },
        }


@jax.jit
def _compare(old_params, old, params, new, gradient):
    with jax.default_matmul_precision("highest"):
        step = basis.subtract(basis.widen(params), basis.widen(old_params))
        missed = basis.subtract(old.project(gradient), new.project(gradient))
        return {
            "overlap": old.overlap(new),
            "cosines": jnp.linalg.svd(
                basis.gram(old.eigenvectors, new.eigenvectors), compute_uv=False
            ),
            "drift": basis.norm(missed) / basis.norm(gradient),
            "distance": basis.norm(step),
            "alignment": old.alignment(step),
        }


def _blocks(pairs, params, subspace, by):
    """Eigenvalues of the blocks, and each block's share of the dominant vectors."""
    mass = [
        jnp.sum(jnp.square(leaf), axis=range(1, leaf.ndim))
        for leaf in jax.tree.leaves(subspace.eigenvectors)
    ]
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    names = blocks.names(params, by)
    return {
        block: {
            "num_params": sum(n for n, name in zip(sizes, names) if name == block),
            "eigenvalues": found.eigenvalues,
            "residuals": found.residuals,
            "converged": found.converged,
            "mass": sum(m for m, name in zip(mass, names) if name == block),
        }
        for block, found in pairs.items()
    }
