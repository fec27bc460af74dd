"""Input and output: series, points, fields, and phantoms."""

from .augmentation import RandAffineMotiond, RandContrastd, RandMotiond, RandSurfaced, RandTimepointsd
from .breast import make_breast
from .cache import CachedSeries
from .collate import collate_series
from .datalist import (
    affine_phantom_items,
    breast_items,
    heart_items,
    phantom_items,
    series_items,
    thorax_items,
)
from .hearts import HEART_MOTIONS, make_heart
from .kinetics import ToftsFit
from .phantom import make_phantom
from .points import read_points
from .readers import header_grids, read_series
from .series import Series
from .thorax import make_thorax
from .transforms import ClipSeriesd, LoadSeriesd, MatchPolarityd, ScalePercentilesd
from .writers import Products

__all__ = [
    "CachedSeries",
    "ClipSeriesd",
    "HEART_MOTIONS",
    "LoadSeriesd",
    "MatchPolarityd",
    "Products",
    "RandAffineMotiond",
    "RandContrastd",
    "RandMotiond",
    "RandSurfaced",
    "RandTimepointsd",
    "ScalePercentilesd",
    "Series",
    "ToftsFit",
    "affine_phantom_items",
    "breast_items",
    "collate_series",
    "header_grids",
    "heart_items",
    "make_breast",
    "make_heart",
    "make_phantom",
    "make_thorax",
    "phantom_items",
    "read_points",
    "read_series",
    "series_items",
    "thorax_items",
]
