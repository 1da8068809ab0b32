"""Every field, its default and meaning: see `bulk_sgd/lab/config.py`, their home."""

from bulk_sgd.lab.config import default as get_config

__all__ = ["get_config"]
