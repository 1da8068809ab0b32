"""Data sets and the order of their mini-batches; nothing is ever downloaded."""
