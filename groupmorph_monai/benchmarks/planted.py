"""Small phantom series that a registration should align, and series with a planted failure."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..data.phantoms.breast import make_breast
from ..data.phantoms.hearts import HEART_MOTIONS, make_heart
from ..data.phantoms.phantom import make_phantom
from ..data.phantoms.thorax import make_thorax
from ..data.series import Frame, Series
from ..space.transforms import AffineTransform

BEYOND_REACH = "motion beyond the capture range"
_CONTRAST_AS_MOTION = {
    "likelihood": {"_target_": "groupmorph_monai.probability.SquaredError", "noise": 0.02},
    "percentiles_per_timepoint": False,
    "adapt_prior": False,
    "lambda_c": 5.0,
}


@dataclass(frozen=True)
class PlantedCase:
    """A series whose registration should succeed or fail.

    Args:
        name: phantom, seed and options.
        failure: the planted failure; None for a good series.
        series: the scans.
        landmarks_mm: ``(K, P, 3)`` RAS, the same points of tissue in each scan; None if a scan shows something else.
        settings: settings of the registration that replace those of the bundle.
    """

    name: str
    failure: str | None
    series: Series
    landmarks_mm: Tensor | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def _phantom(seed: int, timepoints: int, **options: Any) -> dict[str, Tensor]:
    spacing_mm = (1.5, 1.5, 2.0)
    return make_phantom(seed, (40, 40, 30), timepoints, spacing_mm, **{"max_motion_voxels": 3.0, **options})


def _breast(seed: int, timepoints: int, **options: Any) -> dict[str, Tensor]:
    return make_breast(seed, (56, 44, 20), (6.0, 6.0, 8.0), [90.0 * k for k in range(timepoints)], **options)


def _thorax(seed: int, timepoints: int, **options: Any) -> dict[str, Tensor]:
    # As fine as the verdict's grid of a full-size series: with voxels of 6 x 7 x 10 mm, patients hardly differ.
    return make_thorax(seed, (80, 80, 64), timepoints, **options)


def _heart(seed: int, timepoints: int, **options: Any) -> dict[str, Tensor]:
    return make_heart(seed, list(HEART_MOTIONS)[seed % len(HEART_MOTIONS)], size=(40, 40, 28), **options)


PHANTOMS = {"phantom": _phantom, "breast": _breast, "thorax": _thorax, "heart": _heart}
_OTHER_PART = {"phantom": "heart", "heart": "phantom", "breast": "thorax", "thorax": "breast"}  # parts of similar size
# Options of the phantoms with contrast agent for a maximum motion in voxels, along their longest side.
_MOTION: dict[str, Callable[[float], dict[str, float]]] = {
    "phantom": lambda voxels: {"max_motion_voxels": voxels},
    "breast": lambda voxels: {"max_motion_mm": 8.0 * voxels},
}


def make_case(kind: str, seed: int, timepoints: int | None = None, **options: Any) -> PlantedCase:
    """Generate a good series of a kind of phantom, centred at 0 mm."""
    phantom = PHANTOMS[kind](seed, timepoints or 2 + seed % 3, **options)
    affine = phantom["affine"].clone()
    # Centred like this, a different body part lies where it would in a scanner.
    affine[:3, 3] = -affine[:3, :3] @ ((torch.tensor(phantom["image"].shape[1:]) - 1) / 2).double()
    frames = [Frame(volume.numpy(), affine.numpy(), f"{kind}_{seed}_{k}") for k, volume in enumerate(phantom["image"])]
    landmarks_mm = AffineTransform(affine)(phantom["landmarks"].double())
    times_s = tuple(torch.as_tensor(phantom["times_s"]).tolist()) if "times_s" in phantom else None
    series = Series(tuple(frames), times_s=times_s)
    return PlantedCase(f"{kind} {seed}, K = {len(frames)}", None, series, landmarks_mm)


def good_cases(seeds: Sequence[int]) -> Iterator[PlantedCase]:
    """Yield six series per seed, with two to six timepoints, with and without contrast agent."""
    for seed in seeds:
        for kind, timepoints, options in (
            ("phantom", 2 + seed % 2, {}),
            ("phantom", 4 + seed % 3, {"max_motion_voxels": 2.0}),
            ("breast", 2 + seed % 4, {}),
            ("breast", 3, {"lesions": 0, "max_motion_mm": 4.0}),
            ("thorax", 2 + seed % 3, {"max_motion_mm": 15.0}),
            ("heart", 2, {}),
        ):
            case = make_case(kind, seed, timepoints, **options)
            yield replace(case, name=", ".join([case.name, *(f"{name} {value}" for name, value in options.items())]))


def with_last_frame(case: PlantedCase, frame: Frame, failure: str) -> PlantedCase:
    """Replace the last timepoint."""
    return PlantedCase(case.name, failure, replace(case.series, frames=(*case.series.frames[:-1], frame)))


def with_last_header(case: PlantedCase, change: Tensor, failure: str) -> PlantedCase:
    """Change the header of the last timepoint by the transform ``change`` ``(4, 4)``, RAS mm."""
    frame, landmarks_mm = case.series.frames[-1], case.landmarks_mm
    wrong = replace(frame, affine=(change @ torch.as_tensor(frame.affine)).numpy())
    if landmarks_mm is not None:
        landmarks_mm = landmarks_mm.clone()
        landmarks_mm[-1] = AffineTransform(change)(landmarks_mm[-1])
    return replace(with_last_frame(case, wrong, failure), landmarks_mm=landmarks_mm)


def turn(seed: int, degrees: float) -> Tensor:
    """Return a rotation about one of the axes, ``(4, 4)``."""
    a, b = ((0, 1), (1, 2), (2, 0))[seed % 3]
    matrix, angle = torch.eye(4, dtype=torch.float64), math.radians(degrees)
    matrix[a, a] = matrix[b, b] = math.cos(angle)
    matrix[a, b], matrix[b, a] = -math.sin(angle), math.sin(angle)
    return matrix


def mirrored(kind: str, seed: int, timepoints: int | None = None) -> PlantedCase:
    signs = torch.ones(4, dtype=torch.float64)
    signs[seed % 3] = -1
    return with_last_header(make_case(kind, seed, timepoints), torch.diag(signs), "mirrored header")


def turned(kind: str, seed: int, timepoints: int | None = None) -> PlantedCase:
    return with_last_header(make_case(kind, seed, timepoints), turn(seed, 90), "header rotated by 90 degrees")


def another_patient(kind: str, seed: int, timepoints: int | None = None) -> PlantedCase:
    other = make_case(kind, seed + 500, timepoints)
    return with_last_frame(make_case(kind, seed, timepoints), other.series.frames[-1], "another patient")


def another_body_part(kind: str, seed: int, timepoints: int | None = None) -> PlantedCase:
    other = make_case(_OTHER_PART[kind], seed, 2)
    return with_last_frame(make_case(kind, seed, timepoints), other.series.frames[-1], "another body part")


def beyond_reach(kind: str, seed: int, timepoints: int | None = None) -> PlantedCase:
    """Rotate the last scan by 45 degrees and shift it by a third of the field of view, beyond the search range."""
    case = make_case(kind, seed, timepoints)
    change = turn(seed, 45)
    change[:3, 3] = case.series.frames[-1].grid.extent_mm / 3 * torch.tensor([1.0, -1.0, 0.5])
    return with_last_header(case, change, BEYOND_REACH)


def contrast_as_motion(kind: str, seed: int, timepoints: int | None = None) -> PlantedCase:
    """Make a series with enhancing lesions but no motion, to be registered by squared differences with a weak prior."""
    case = make_case(kind, seed, timepoints, **_MOTION[kind](0.01))
    return replace(case, failure="enhancement mistaken for motion", settings=_CONTRAST_AS_MOTION)


FAILURES: dict[Callable[..., PlantedCase], tuple[str, ...]] = {
    mirrored: tuple(PHANTOMS),
    turned: tuple(PHANTOMS),
    another_patient: tuple(PHANTOMS),
    another_body_part: tuple(PHANTOMS),
    beyond_reach: tuple(PHANTOMS),
    contrast_as_motion: ("phantom", "breast"),
}


def failed_cases(seeds: Sequence[int]) -> Iterator[PlantedCase]:
    """Yield each failure for each suitable kind of phantom, once per seed."""
    for seed in seeds:
        for number, (plant, kinds) in enumerate(FAILURES.items()):
            for kind in kinds:
                yield plant(kind, seed + number)


def contrast_cases(seeds: Sequence[int]) -> Iterator[PlantedCase]:
    """Yield series of six scans with contrast agent for kinetic fits: good ones and each planted failure."""
    for seed in seeds:
        for kind in _MOTION:
            yield make_case(kind, seed, 6)
            for plant in FAILURES:
                yield plant(kind, seed, 6)


def added_motion(seeds: Sequence[int], voxels: float) -> Iterator[tuple[PlantedCase, PlantedCase]]:
    """Yield series of six scans with contrast agent, without motion and with motion of up to ``voxels``: the input and
    the output of a registration that adds this motion."""
    for seed in seeds:
        for kind, options in _MOTION.items():
            yield make_case(kind, seed, 6, **options(0.01)), make_case(kind, seed, 6, **options(voxels))
