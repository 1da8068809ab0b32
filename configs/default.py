"""Every field with its default and meaning: see `bulk_sgd/config.py`, their home."""

from bulk_sgd.config import default as get_config

__all__ = ["get_config"]
