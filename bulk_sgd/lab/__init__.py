"""Experiments on sharp and flat directions: configs, training, sweeps, reports."""
