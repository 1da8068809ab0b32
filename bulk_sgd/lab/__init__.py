"""Experiments on sharp and flat directions: configs, training, sweeps, reports."""


def __getattr__(name):
    """`run` and `load`, which need more packages than the commands' first check."""
    if name not in ("run", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bulk_sgd.lab import runs

    return getattr(runs, name)
