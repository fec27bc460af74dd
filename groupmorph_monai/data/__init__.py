"""Input and output: series, points, fields, and phantoms."""

from .contrast.kinetics import SpoiledGradientEcho, ToftsFit
from .phantoms.breast import make_breast
from .phantoms.hearts import HEART_MOTIONS, make_heart
from .phantoms.phantom import make_phantom
from .phantoms.thorax import make_thorax
from .phantoms.transform import MakePhantomd
from .preprocessing.augmentation import (
    RandAffineMotiond,
    RandContrastd,
    RandIntervald,
    RandMotiond,
    RandSurfaced,
    RandTimepointsd,
)
from .preprocessing.cache import CachedSeries
from .preprocessing.collate import collate_series
from .preprocessing.fading import CorrectFadingd
from .preprocessing.mixed_contrast import MatchContrastd
from .preprocessing.transforms import ClipSeriesd, LoadSeriesd, MatchPolarityd, ScalePercentilesd, ScaleSeriesd
from .reading.datalist import heart_items, phantom_items, series_items
from .reading.points import read_points
from .reading.readers import header_grids, read_series
from .series import Frame, Series
from .writing.products import Exports, Products

__all__ = [
    "CachedSeries",
    "ClipSeriesd",
    "CorrectFadingd",
    "Exports",
    "Frame",
    "HEART_MOTIONS",
    "LoadSeriesd",
    "MakePhantomd",
    "MatchContrastd",
    "MatchPolarityd",
    "Products",
    "RandAffineMotiond",
    "RandContrastd",
    "RandIntervald",
    "RandMotiond",
    "RandSurfaced",
    "RandTimepointsd",
    "ScalePercentilesd",
    "ScaleSeriesd",
    "Series",
    "SpoiledGradientEcho",
    "ToftsFit",
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
]
