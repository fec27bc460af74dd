"""How good it is: metrics, where engines measure them, what a run writes and shows."""

from .batch import BatchWriter
from .measure import MeasureRegistrationd, ValidationPicture, WarpLabelsd, average_of
from .output import MetricsTable, SeriesWriter, ShowMeand

__all__ = [
    "BatchWriter",
    "MeasureRegistrationd",
    "MetricsTable",
    "SeriesWriter",
    "ShowMeand",
    "ValidationPicture",
    "WarpLabelsd",
    "average_of",
]
