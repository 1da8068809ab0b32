"""Networks as pure functions of a plain dict of parameters; only they know flax.

A stateful or random loss has no Hessian, so there is no batch norm and no dropout.
"""
