"""How vectors and bases are laid out over devices."""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bulk_sgd import checks
from bulk_sgd.linalg.factors import Factored, Factors, is_factors


def check_layout(sharding, params=None, kind=NamedSharding):
    """`sharding` as a pytree like `params`, or as it is without them.

    Raises ArgumentError unless it consists of `NamedSharding`s on Auto axes, or others
    of that `kind`, like the params or a prefix of them, that fit their shapes.
    """
    allowed = (
        "a jax.NamedSharding on Auto axes of a mesh, or a pytree of them like the "
        "params or a prefix of it."
    )
    for path, layout in jax.tree_util.tree_leaves_with_path(sharding):
        if not isinstance(layout, kind) or not _is_on_auto_axes(layout):
            name = f"sharding{jax.tree_util.keystr(path)}"
            raise checks.ArgumentError(name, f"is {layout!r}; it must be {allowed}")
    if params is None:
        return sharding
    try:
        layouts = jax.tree.broadcast(sharding, params)
    except ValueError:
        problem = f"is {sharding!r}; it must be {allowed}"
        raise checks.ArgumentError("sharding", problem) from None
    named = jax.tree_util.tree_leaves_with_path(layouts)
    for (path, layout), leaf in zip(named, jax.tree.leaves(params)):
        try:
            layout.check_compatible_aval(leaf.shape)  # numbers of axes
            layout.shard_shape(leaf.shape)  # and whether the mesh divides them
        except ValueError:
            raise checks.ArgumentError(
                f"sharding{jax.tree_util.keystr(path)}",
                f"is {layout.spec} on a mesh of {dict(layout.mesh.shape)}; each axis "
                f"must divide an axis of the parameter, of shape {leaf.shape}.",
            ) from None
    return layouts


def _is_on_auto_axes(layout) -> bool:
    if not isinstance(layout, NamedSharding):
        return True
    kinds = dict(zip(layout.mesh.axis_names, layout.mesh.axis_types))
    names = jax.tree.leaves(tuple(layout.spec))
    return all(kinds.get(name, AxisType.Auto) == AxisType.Auto for name in names)


def place(vector, sharding):
    """`vector` laid out over devices as `sharding` says; None leaves it to XLA."""
    if sharding is None:
        return vector
    return jax.lax.with_sharding_constraint(vector, sharding)


def place_rows(basis, sharding):
    """A basis with each row laid out as `sharding` says of one vector."""
    return basis if sharding is None else place(basis, row_sharding(basis, sharding))


def row_sharding(rows, sharding):
    """The layout of a basis `rows` whose rows are each laid out like `sharding`.

    The factors of a matrix are split along the axes that they have of it.

    >>> mesh = jax.sharding.AbstractMesh((1,), ("x",))
    >>> split = NamedSharding(mesh, PartitionSpec("x"))
    >>> tuple(row_sharding(jax.numpy.ones((2, 4)), split).spec)
    (None, 'x')
    """
    if isinstance(rows, Factored):
        stored = jax.tree.map(_leaf, rows.stored, sharding, is_leaf=is_factors)
        whole = _like(jax.tree.leaves(sharding)[0], ())
        return Factored(whole, stored)
    return jax.tree.map(_leaf, rows, sharding)


def _leaf(rows, sharding):
    if not is_factors(rows):
        return _like(sharding, (None, *sharding.spec))
    spec = *sharding.spec, *(None,) * (rows.ndim - len(sharding.spec))
    ends = (
        _like(sharding, (None, None, *(spec[axis] for axis in axes)))
        for axes in rows.axes
    )
    return Factors(*ends, rows.sides)


def _like(sharding, spec):
    spec = PartitionSpec(*spec)
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)
