"""Check whether the values of different scans are comparable."""

from collections import defaultdict
from collections.abc import Sequence

from .order import Volume
from .plane import Plane

_ROUNDING = 1e-3  # maximum relative difference of equal slopes


def incomparable_scales(volumes: Sequence[Volume]) -> list[str]:
    """Describe why values of the same image type may not be comparable, one reason per line: a missing scale slope of
    Philips, or Real World Value Mappings that contradict the conversion by `pixels.read_voxels`."""
    kinds: defaultdict[tuple[str, ...], list[Plane]] = defaultdict(list)
    for plane in (plane for volume in volumes for plane in volume):
        if plane.file.scaling.slope:  # others are refused
            kinds[plane.source.image_type].append(plane)
    lines = []
    for planes in kinds.values():
        scalings = [plane.file.scaling for plane in planes]
        lacking = [plane for plane in planes if plane.file.scaling.display is None]
        mixed = 0 < len(lacking) < len(planes)
        if mixed or (lacking and scalings[0].of_philips and _differ([one.slope for one in scalings])):
            lines.append(
                f"{lacking[0].file.path}: Philips' private scale slope is missing from {len(lacking)} of {len(planes)} "
                "images, so values of different scans may not be comparable; export the series again with private "
                "attributes"
            )
        mapped = [one for one in scalings if one.real_world]
        displayed = all(not _differ([one.slope, one.real_world or one.slope]) for one in mapped)  # as Philips writes it
        if not displayed and _differ([(one.real_world or 1) / (one.slope * one.factor(scalings[0])) for one in mapped]):
            lines.append(
                f"{planes[0].file.path}: the Real World Value Mapping, which is not applied, differs between the "
                "images, so values of different scans may not be comparable; convert the series to NIfTI with real "
                "values"
            )
    return lines


def _differ(slopes: Sequence[float]) -> bool:
    return any(abs(slope - slopes[0]) > _ROUNDING * abs(slopes[0]) for slope in slopes)
