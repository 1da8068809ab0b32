"""Networks as pure functions of a plain dict of parameters; only they know flax.

There is no batch normalisation and no dropout, because the Hessian of a stateful or
random loss is not well defined.
"""
