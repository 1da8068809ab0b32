"""What functions read decides which compiled program they get."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bulk_sgd
from bulk_sgd.curvature.captured import Reading
from bulk_sgd.solvers import thick_restart

VECTOR = jnp.ones(3)
SCALE = 1.0


class Trainer:
    shift = 0.0

    def __init__(self):
        self.scale, self.array = 1.0, np.ones(3, np.float32)
        self.layers = {"first": [jnp.ones(3)]}
        self.calls, self.other = 0, 0

    def __eq__(self, other):
        return self is other

    def __hash__(self):
        return id(self)

    @property
    def factor(self):
        return self.scale

    def inner(self, w):
        self.calls += 1
        return jnp.sum(self.array * self.layers["first"][0] * w**2) + self.shift

    def loss(self, w):
        return self.factor * self.inner(w)

    def model(self, w, x):
        return self.scale * w * x

    __call__ = loss


def reads_a_global(w):
    return SCALE * jnp.sum(w**2)


def closure(scale):
    def loss(w):
        return scale * jnp.sum(w**2)

    def change():
        nonlocal scale
        scale = 3.0

    return loss, change


def objective(trainer):
    square = lambda f, y: (f - y) ** 2
    return bulk_sgd.Objective(trainer.model, square, VECTOR, VECTOR)


FORMS = {
    "bound method": lambda t: t.loss,
    "callable object": lambda t: t,
    "partial": lambda t: functools.partial(t.loss),
    "Partial": lambda t: jax.tree_util.Partial(t.loss),
    "closure": lambda t: lambda w: t.loss(w),
    "inside a function": lambda t: lambda w: (lambda: t.scale)() * jnp.sum(w**2),
    "Objective": objective,
    "closure over an Objective": lambda t: functools.partial(
        lambda made, w: made(w), objective(t)
    ),
}


def uses():
    """Numbers that the programs of the library find for a loss."""
    solve = lambda f: bulk_sgd.top_eigenpairs(bulk_sgd.hessian(f, VECTOR), VECTOR, 1)
    return {
        "product": lambda f: bulk_sgd.hessian(f, VECTOR)(VECTOR)[0],
        "solve": lambda f: solve(f).eigenvalues[0],
        "trace": lambda f: (
            bulk_sgd.trace(bulk_sgd.hessian(f, VECTOR), VECTOR, 2, 3).value
        ),
        "slice": lambda f: bulk_sgd.loss_slice(f, VECTOR, [VECTOR], [jnp.zeros(1)])[0],
        "transform": lambda f: (
            bulk_sgd.project_bulk(1)
            .update(VECTOR, bulk_sgd.project_bulk(1).init(VECTOR), VECTOR, value_fn=f)[
                1
            ]
            .subspace.eigenvalues[0]
        ),
    }


@pytest.mark.parametrize("form", FORMS)
def test_a_changed_object_changes_the_product(form):
    trainer = Trainer()
    fn = FORMS[form](trainer)
    matvec = bulk_sgd.hessian(fn, VECTOR)
    before = matvec(VECTOR)
    trainer.scale = 3.0
    factor = 9 if "Objective" in form else 3  # its loss is a square
    for product in matvec, bulk_sgd.hessian(fn, VECTOR):
        np.testing.assert_allclose(product(VECTOR), factor * before, rtol=1e-6)


@pytest.mark.parametrize("use", uses())
def test_every_program_reads_anew(use):
    trainer = Trainer()
    before = uses()[use](trainer.loss)
    trainer.scale = 3.0
    # The trace has ten digits of float32 less those of a sketch of three directions.
    np.testing.assert_allclose(uses()[use](trainer.loss), 3 * before, rtol=1e-5)


CHANGES = {
    "an array": lambda t: setattr(t, "array", 2 * t.array),
    "an array in place": lambda t: t.array.__imul__(2),
    "an item of a list": lambda t: t.layers["first"].__setitem__(0, 2 * VECTOR),
    "a property": lambda t: setattr(t, "scale", 2.0),
    "the class": lambda t: setattr(type(t), "shift", 1.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_reading_changes_with_what_is_read(change):
    trainer = types.new_class("Own", (Trainer,))()  # whose class may change
    before = Reading.of(trainer.loss)
    assert before == Reading.of(trainer.loss)
    CHANGES[change](trainer)
    assert before != Reading.of(trainer.loss)


def test_a_reading_follows_globals_and_variables_of_closures(monkeypatch):
    loss, change = closure(1.0)
    before = Reading.of(loss), Reading.of(reads_a_global)
    change()
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    after = Reading.of(loss), Reading.of(reads_a_global)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_what_is_not_read_or_set_by_the_code_itself_changes_no_program():
    trainer = Trainer()
    calls, made = [], objective(trainer)

    def loss(w):
        calls.append(1)
        return trainer.loss(w) + made(w)

    solve = lambda w: bulk_sgd.top_eigenpairs(bulk_sgd.hessian(loss, w), w, rank=1)
    solve(VECTOR)
    size, count = thick_restart.solve._cache_size(), len(calls)
    trainer.other = 1
    solve(2 * VECTOR)
    assert thick_restart.solve._cache_size() == size
    assert trainer.calls == len(calls) == count


def test_equal_objects_with_a_hash_share_a_program():
    @dataclasses.dataclass(frozen=True)
    class Model:
        width: int
        seed: int = dataclasses.field(default=0, compare=False)

        def __call__(self, w):
            return self.width * jnp.sum(w**2) + 0 * self.seed

    reading = Reading.of(Model(1, seed=1))
    assert reading == Reading.of(Model(1, seed=2)) != Reading.of(Model(2))


def test_objects_that_refer_to_each_other_are_read_once():
    trainer = Trainer()
    trainer.layers["first"].append(trainer)
    trainer.factors = {"self": trainer.loss}
    assert hash(Reading.of(trainer)) == hash(Reading.of(trainer))
