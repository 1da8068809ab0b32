"""What solvers do not take, each named in one sentence."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import exact_solver

import bulk_sgd

EXACT, NINE = exact_solver(), jnp.ones(9)
BLOCKS = {"encoder": {"bias": jnp.ones(3), "kernel": jnp.ones(6)}, "head": jnp.ones(6)}

# By solver: arguments, and the sentence.
MADE = {
    bulk_sgd.lanczos: [
        ({"tol": -1}, "tol is -1; it must be a number from 0 to 1"),
        ({"tol": "1e-3"}, "tol is '1e-3'; it must be a number"),
        ({"tol": [1e-3]}, "tol is [0.001]; it must be a number"),
        ({"tol": np.ones(3)}, "tol is array([1., 1., 1.]); it must be a number"),
        ({"max_matvecs": 0}, "max_matvecs is 0; it must be at least 1"),
        ({"max_basis": 0}, "max_basis is 0; it must be at least 1"),
        ({"max_basis": "all"}, "max_basis is 'all'; it must be an integer"),
        ({"which": "top"}, "which is 'top'; it must be one of"),
    ],
    bulk_sgd.power: [
        ({"along": "rows"}, "along is 'rows'; it must be one of basis"),
        ({"tol": 1}, "tol is 1; it must be a number from 0 below 1"),
        ({"max_matvecs": 0}, "max_matvecs is 0"),
    ],
    bulk_sgd.on_drift: [
        ({"solver": "lanczos"}, "solver is 'lanczos'"),
        ({"solver": bulk_sgd.power(), "tol": -1}, "tol is -1"),
        ({"solver": bulk_sgd.power(), "every": 0}, "every is 0"),
    ],
    bulk_sgd.adaptive: [
        ({"solver": "lanczos"}, "solver is 'lanczos'; it must be a bu"),
        ({"solver": EXACT, "threshold": -1}, "threshold is -1; it must be a number"),
        (
            {"solver": EXACT, "threshold": 1.0, "learning_rate": -1},
            "learning_rate is -1; it must be a number, at least 0",
        ),
        ({"solver": EXACT, "learning_rate": 0.1}, "learning_rate is 0.1; it must be 1"),
    ],
    bulk_sgd.streaming: [
        ({"columns": -1}, "columns is -1"),
        ({"every": 0}, "every is 0"),
        ({"gain": 0.0}, "gain is 0"),
        ({"gain": 1.5}, "gain is 1.5"),
    ],
    bulk_sgd.krylov_filter: [
        ({"length": 1}, "length is 1; it must be at least 2"),
        ({"calibrate_every": 0}, "calibrate_every is 0"),
        ({"max_matvecs": 0}, "max_matvecs is 0"),
    ],
    bulk_sgd.blockwise: [({"solver": "lanczos"}, "solver is 'lanczos'; it must be a")],
    bulk_sgd.update_pca: [
        ({"window": 0}, "window is 0; it must be at least 1"),
        ({"every": 0}, "every is 0; it must be at least 1"),
    ],
    bulk_sgd.streaming_pca: [({"gain": 0}, "gain is 0; it must be a number from")],
}


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [(make, *case) for make, cases in MADE.items() for case in cases],
)
def test_wrong_arguments_are_named(make, arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make(**arguments)


@pytest.mark.parametrize(
    ("solver", "params", "rank", "message"),
    [
        (bulk_sgd.lanczos(max_basis=3), NINE, 2, "max_basis is 3; it must be at le"),
        (bulk_sgd.power(max_matvecs=2), NINE, 4, "max_matvecs is 2; it must be at le"),
        (bulk_sgd.adaptive(EXACT), NINE, 1, "rank is 1; it must be at least 2 (thres"),
        (bulk_sgd.streaming(3), NINE, 4, "columns is 3; it must divide the rank, 4"),
        (
            bulk_sgd.krylov_filter(max_matvecs=4), NINE, 4,
            "max_matvecs is 4; it must be at least 5 (the rank and the next eig",
        ),
        (
            bulk_sgd.update_pca(3), NINE, 4,
            "window is 3; it must be at least 4 (the rank)",
        ),
        (
            bulk_sgd.blockwise(EXACT), BLOCKS, 1,
            "rank is 1; it must be at least 2 (one for each of the blocks 'enc",
        ),
        (
            bulk_sgd.blockwise(EXACT, ".*"), BLOCKS, 12,
            "'encoder/bias' in the rank is 4; it must be from 1 to 3 (its number of",
        ),
        (
            bulk_sgd.blockwise(EXACT, "tail"), BLOCKS, 2,
            "by is 'tail', which puts no parameter in a block",
        ),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_the_params_are_named(solver, params, rank, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        bulk_sgd.project_bulk(rank, solver=solver).init(params)


@pytest.mark.parametrize("wrap", [bulk_sgd.adaptive, bulk_sgd.on_drift])
def test_wrappers_wait_as_long_as_the_solver_that_they_call(wrap):
    for gain, sweeps in ((0.4, 6), (0.1, 10)):
        assert wrap(bulk_sgd.streaming(gain=gain)).sweeps == sweeps
