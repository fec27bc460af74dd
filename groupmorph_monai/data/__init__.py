"""What comes in and goes out: series, points, phantoms, written fields."""

from .datalist import phantom_items, series_items
from .phantom import make_phantom
from .readers import Series, read_points, read_series
from .transforms import LoadSeriesd, RandContrastd, RandMotiond, RandSurfaced, RandTimepointsd, ScalePercentilesd

__all__ = [
    "LoadSeriesd",
    "RandContrastd",
    "RandMotiond",
    "RandSurfaced",
    "RandTimepointsd",
    "ScalePercentilesd",
    "Series",
    "make_phantom",
    "phantom_items",
    "read_points",
    "read_series",
    "series_items",
]
