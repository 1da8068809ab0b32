"""Sweeps: lists of runs that differ in some fields."""
