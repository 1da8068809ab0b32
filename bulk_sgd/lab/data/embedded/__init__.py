"""Data that ships with the package; NOTICE names its source and licence."""
