"""Benchmarks of long texts with every baseline, their reports, and speed and memory against baselines."""
