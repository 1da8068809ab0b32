"""Cells of a sweep: how they combine, and what is refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from bulk_sgd.lab import config
from bulk_sgd.lab.sweep import grid


def test_product_varies_the_last_part_fastest():
    cells = grid.product(grid.values("seed", (0, 1)), grid.values("batch_size", (5, 9)))
    assert [tuple(cell.values()) for cell in cells] == [(0, 5), (0, 9), (1, 5), (1, 9)]


def test_zip_and_chain():
    seeds, sizes = grid.values("seed", (0, 1)), grid.values("batch_size", (5, 9))
    assert grid.zipped(seeds, sizes) == [
        {"seed": 0, "batch_size": 5},
        {"seed": 1, "batch_size": 9},
    ]
    assert grid.chain(seeds, sizes) == seeds + sizes


def test_combinations_that_say_two_things_are_refused():
    seeds = grid.values("seed", (0, 1))
    with pytest.raises(ValueError, match="seed is set twice"):
        grid.product(seeds, seeds)
    with pytest.raises(ValueError, match=r"\[2, 1\] cells"):
        grid.zipped(seeds, grid.values("batch_size", (5,)))


def test_apply_sets_fields_and_leaves_the_base_alone():
    base = config.default()
    changed = grid.apply(base, {"subspace.rank": 3, "model.hidden": (4,)})
    assert (changed.subspace.rank, changed.model.hidden) == (3, (4,))
    assert base.subspace.rank == 10
    with pytest.raises(AttributeError):
        changed.subspace.rang = 1


@pytest.mark.parametrize(
    ("cell", "match"),
    [
        ({"subspace.rang": 3}, r"rang is not a field .*; did you mean 'rank'\?"),
        ({"space.rank": 3}, r"config\.space\.rank is not a field"),
        ({"seed.x": 3}, r"config\.seed\.x is not a field"),
        ({"subspace": 3}, r"config\.subspace is a group"),
        ({"subspace.rank": "3"}, r"subspace\.rank is '3'; it must be of type int"),
        ({"subspace.rank": 0}, r"subspace\.rank is 0"),
    ],
)
def test_wrong_cells_are_refused(cell, match):
    with pytest.raises(ValueError, match=match):
        grid.apply(config.default(), cell)


def test_numbers_of_numpy_and_jax_become_those_of_python():
    cells = grid.check(
        [
            {"seed": np.int64(3), "model.hidden": np.array([4, 5])},
            {"seed": jnp.ones(())},
        ]
    )
    assert cells == [{"seed": 3, "model.hidden": (4, 5)}, {"seed": 1.0}]
    assert json.dumps(cells)
    assert grid.apply(config.default(), cells[0]).model.hidden == (4, 5)


@pytest.mark.parametrize(
    ("cells", "match"),
    [
        (None, "The cells are None; get_sweep must return a list"),
        ({"seed": 1}, r"The cells are \{'seed': 1\}; get_sweep must"),
        ([{"seed": 1}, 3], "cell 1 is 3; it must be a dict of fields"),
        ([{3: 1}], r"cell 0 is \{3: 1\}; it must be a dict of fields"),
        ([{"arms": ({1},)}], r"cell 0: config\.arms is \{1\}; it must be a number"),
    ],
)
def test_what_are_no_cells_is_refused(cells, match):
    with pytest.raises(ValueError, match=match):
        grid.check(cells)
