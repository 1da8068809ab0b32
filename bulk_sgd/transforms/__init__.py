"""Optax transforms that act on the parts of an update inside and outside a subspace."""
