"""What comes in and goes out: series, points, phantoms, written fields."""

from .augmentation import RandAffineMotiond, RandContrastd, RandMotiond, RandSurfaced, RandTimepointsd
from .cache import CachedSeries
from .datalist import heart_items, phantom_items, series_items
from .hearts import HEART_MOTIONS, make_heart
from .phantom import make_phantom
from .points import read_points
from .readers import Series, read_series
from .transforms import ClipSeriesd, LoadSeriesd, MatchPolarityd, ScalePercentilesd

__all__ = [
    "CachedSeries",
    "ClipSeriesd",
    "HEART_MOTIONS",
    "LoadSeriesd",
    "MatchPolarityd",
    "RandAffineMotiond",
    "RandContrastd",
    "RandMotiond",
    "RandSurfaced",
    "RandTimepointsd",
    "ScalePercentilesd",
    "Series",
    "heart_items",
    "make_heart",
    "make_phantom",
    "phantom_items",
    "read_points",
    "read_series",
    "series_items",
]
