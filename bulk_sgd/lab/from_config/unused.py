"""Fields that do nothing, because no name that the config chooses uses them."""

import functools

from ml_collections import ConfigDict

_DEEP = ("vit", "transformer", "decoder")
_WIDE = (*_DEEP, "vgg11", "resnet8")
_SHIPPED = (*_WIDE, "mlp", "cnn")
_MOMENTS = ("adam", "adamw", "sophia", "muon")
_STEPPED = ("sgd", "sam", "muon")

# By the field that chooses: other fields, and which of its choices use them.
USED_BY = {
    "model.name": {
        "model.hidden": ("mlp",),
        "model.channels": ("cnn",),
        "model.pool": ("cnn", "vgg11"),
        "model.width": _WIDE,
        "model.norm": ("vgg11", "resnet8"),
        "model.num_groups": ("vgg11", "resnet8"),
        "model.num_layers": _DEEP,
        "model.num_heads": _DEEP,
        "model.scan_layers": _DEEP,
        "model.remat": _DEEP,
        "model.tied": ("decoder",),
        "model.patch": ("vit",),
        "model.activation": _SHIPPED,
        "model.init": _SHIPPED,
    },
    "loss.name": {"loss.reduction": ("mse",)},
    "optimizer.name": {
        "optimizer.momentum": _STEPPED,
        "optimizer.nesterov": _STEPPED,
        "optimizer.rho": ("sam",),
        "optimizer.b1": _MOMENTS,
        "optimizer.b2": _MOMENTS,
        "optimizer.eps": _MOMENTS,
        "optimizer.gamma": ("sophia",),
        "optimizer.diagonal_every": ("sophia",),
    },
    "optimizer.schedule": {
        "optimizer.decay_steps": ("linear", "cosine"),
        "optimizer.final_scale": ("linear", "cosine"),
        "optimizer.boundaries": ("step",),
        "optimizer.decay": ("step",),
    },
    "subspace.solver": {
        "subspace.tol": ("lanczos",),
        "subspace.max_matvecs": ("lanczos", "power", "krylov_filter"),
        "subspace.max_basis": ("lanczos",),
        "subspace.warm_start": ("lanczos",),
        "subspace.along": ("power",),
        "subspace.columns": ("streaming",),
        "subspace.gain": ("streaming",),
        "subspace.every": ("streaming",),
        "subspace.factors": ("power", "streaming"),
        "subspace.length": ("krylov_filter",),
        "subspace.calibrate_every": ("krylov_filter",),
        "subspace.window": ("update_pca",),
        "subspace.update_gain": ("streaming_pca",),
    },
    "subspace.data": {"subspace.batch_fraction": ("batch",)},
    "subspace.keep": {"subspace.threshold": ("eigenvalue", "rate")},
}


def without(config: dict) -> dict:
    """A recorded config without the fields that do nothing.

    >>> without({"model": {"name": "cnn", "hidden": [200], "channels": [8]}})
    {'model': {'name': 'cnn', 'channels': [8]}}
    """
    found = {k: dict(v) if isinstance(v, dict) else v for k, v in config.items()}
    for chooser, fields in USED_BY.items():
        group, name = chooser.split(".")
        choice = (config.get(group) or {}).get(name)
        for field, users in fields.items():
            if choice is not None and choice not in users:
                found[group].pop(field.removeprefix(f"{group}."), None)
    return found


def find(config: ConfigDict, default: ConfigDict) -> dict[str, str]:
    """The fields that differ from the default and do nothing, each with a sentence.

    >>> from bulk_sgd.lab.config import default
    >>> config = default()
    >>> config.subspace.factors = 2
    >>> find(config, default())["subspace.factors"]
    "config.subspace.factors is 2, which config.subspace.solver = 'lanczos' does not \
use, only power, streaming."
    """
    get = lambda config, path: functools.reduce(
        ConfigDict.__getitem__, path.split("."), config
    )
    found = {}
    for chooser, fields in USED_BY.items():
        choice = get(config, chooser)
        for field, users in fields.items():
            value = get(config, field)
            if choice not in users and value != get(default, field):
                found[field] = (
                    f"config.{field} is {value!r}, which config.{chooser} = {choice!r} "
                    f"does not use, only {', '.join(users)}."
                )
    return found
