"""Measurements: speed and memory against baselines."""
