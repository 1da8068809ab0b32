"""How vectors and bases are laid out over devices."""

import jax
from jax.sharding import NamedSharding, PartitionSpec


def place(vector, sharding):
    """`vector` laid out over devices as `sharding` says; None leaves it to XLA."""
    if sharding is None:
        return vector
    return jax.lax.with_sharding_constraint(vector, sharding)


def place_rows(basis, sharding):
    """A basis with each row laid out as `sharding` says of one vector."""
    return place(basis, row_sharding(sharding))


def row_sharding(sharding):
    """The layout of a basis whose rows are each laid out like `sharding`.

    >>> mesh = jax.sharding.AbstractMesh((1,), ("x",))
    >>> tuple(row_sharding(NamedSharding(mesh, PartitionSpec("x"))).spec)
    (None, 'x')
    """
    return jax.tree.map(
        lambda s: NamedSharding(
            s.mesh, PartitionSpec(None, *s.spec), memory_kind=s.memory_kind
        ),
        sharding,
    )
