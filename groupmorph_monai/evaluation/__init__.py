"""How good it is: metrics, where engines measure them, what a run writes and shows."""

from .measure import MeasureRegistrationd, ValidationPicture, WarpLabelsd, average_of
from .output import MetricsTable, SeriesWriter, ShowMeand

__all__ = [
    "MeasureRegistrationd",
    "MetricsTable",
    "SeriesWriter",
    "ShowMeand",
    "ValidationPicture",
    "WarpLabelsd",
    "average_of",
]
