"""Metrics, the handlers that compute them during a run, and the reports that a run writes."""

from .batch import BatchWriter
from .measure import MeasureRegistrationd, MeasureSimilarityd, ValidationPicture, WarpLabelsd, average_of
from .metrics_table import MetricsTable
from .output import SeriesWriter, ShowMeand

__all__ = [
    "BatchWriter",
    "MeasureRegistrationd",
    "MeasureSimilarityd",
    "MetricsTable",
    "SeriesWriter",
    "ShowMeand",
    "ValidationPicture",
    "WarpLabelsd",
    "average_of",
]
