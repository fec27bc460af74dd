"""Benchmarks of `groupmorph benchmark`: methods, models and peers on series with known motion."""

from typing import Any

__all__ = ["Row"]

Row = dict[str, Any]  # a row of a suite's table: numbers and text by column
