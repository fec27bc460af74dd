"""Benchmarks of `groupmorph benchmark`: methods, models and peers on series with known motion."""
