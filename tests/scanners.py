"""Random scanners: a body defined in continuous coordinates, moved by exactly known motion and scanned on any grid, and
the files of a registration, read by SimpleITK.

Coordinates are RAS mm. The body lies in its own space; `Motion` takes its points to where they are at a timepoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK
from scipy.spatial.transform import Rotation

from groupmorph_monai.apps.command_line import main

LPS = np.array([-1.0, -1.0, 1.0])
# The 48 ways to store a volume: the direction in the body of each array axis.
ORIENTATIONS = [np.eye(3)[:, order] * signs for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]
STORAGES = ("nii.gz", "nrrd", "mha", "4D")
LEAST_VOXELS, FINEST_MM, COARSEST_MM = 24, 0.5, 6.0


class Body:
    """Ellipsoid of about 9 cm with soft-edged ellipsoids and fine texture inside, whose contrast changes over time.

    Args:
        rng: source of everything random.
        timepoints: K.
        blobs: number of ellipsoids in it.
        waves: number of plane waves, 8 to 25 mm long, whose sum is the texture.
    """

    def __init__(self, rng: np.random.Generator, timepoints: int, blobs: int = 24, waves: int = 16):
        self.radii = rng.uniform(38, 50, 3).astype(np.float32)
        self.centres = (rng.uniform(-0.7, 0.7, (blobs, 3)) * self.radii).astype(np.float32)
        shapes = Rotation.random(blobs, rng=rng).as_matrix() / rng.uniform(6, 18, (blobs, 3, 1))
        self.shapes = shapes.astype(np.float32)
        self.levels = rng.uniform(-1.5, 1.5, blobs) + rng.uniform(-0.5, 0.5, blobs) * np.arange(timepoints)[:, None]
        directions = Rotation.random(waves, rng=rng).as_matrix()[:, 0]
        self.waves = (2 * np.pi * directions / rng.uniform(8, 25, (waves, 1))).astype(np.float32)
        self.phases = rng.uniform(0, 2 * np.pi, waves)

    def depth(self, points: np.ndarray) -> np.ndarray:
        """``(..., 3)`` to ``(...)``: 1 at the centre, 0 on the skin, negative outside."""
        return 1 - np.linalg.norm(points / self.radii, axis=-1)

    def signal(self, points: np.ndarray, timepoint: int) -> np.ndarray:
        """``(..., 3)`` to ``(...)``, between about 0 and 1000, in float32, as there are many points."""
        points = points.astype(np.float32)
        tissue = np.full(points.shape[:-1], 3.0, np.float32)
        for centre, shape, level in zip(self.centres, self.shapes, self.levels[timepoint]):
            radius = np.linalg.norm((points - centre) @ shape.T, axis=-1)
            tissue += level / (1 + np.exp(10 * np.minimum(radius - 1, 5)))
        for wave, phase in zip(self.waves, self.phases):
            tissue += 0.08 * np.sin(points @ wave + phase)
        return 150 * np.maximum(tissue, 0) / (1 + np.exp(-40 * self.depth(points)))


class Motion:
    """Smooth shears along the three axes in turn, then an affine map: exactly invertible, in closed form.

    Args:
        matrix: ``(4, 4)``, the affine map.
        shears: ``(3, 3)``, the wave vectors in rad/mm by whose sines the axes are sheared, each without its own
            component; None for no shears.
        phases: ``(3,)``, of the sines.
        amplitude_mm: of the sines.
    """

    def __init__(
        self,
        matrix: np.ndarray,
        shears: np.ndarray | None = None,
        phases: Sequence[float] = (0, 0, 0),
        amplitude_mm: float = 0.0,
    ):
        self.matrix = np.asarray(matrix, dtype=float)
        self.shears = np.zeros((3, 3)) if shears is None else shears * (1 - np.eye(3))
        self.phases, self.amplitude_mm = phases, amplitude_mm

    @classmethod
    def random(
        cls, rng: np.random.Generator, rotation_degrees: float, shift_mm: float, scale: float, amplitude_mm: float
    ) -> "Motion":
        """Draw a motion with at most this rotation, shift and relative change of size, and shears 70 to 150 mm long."""
        turn, shift = (most * _in_ball(rng) for most in (np.deg2rad(rotation_degrees), shift_mm))
        sizes = np.diag(1 + rng.uniform(-scale, scale, 3))
        shears = 2 * np.pi * Rotation.random(3, rng=rng).as_matrix()[:, 0] / rng.uniform(70, 150, (3, 1))
        return cls(
            affine(Rotation.from_rotvec(turn).as_matrix() @ sizes, shift), shears, rng.uniform(0, 6, 3), amplitude_mm
        )

    def __call__(self, points: np.ndarray) -> np.ndarray:
        points = np.array(points, dtype=float)
        for axis in (0, 1, 2):
            points[..., axis] += self.amplitude_mm * np.sin(points @ self.shears[axis] + self.phases[axis])
        return apply(self.matrix, points)

    def inverse(self, points: np.ndarray) -> np.ndarray:
        points = apply(np.linalg.inv(self.matrix), points)
        for axis in (2, 1, 0):
            points[..., axis] -= self.amplitude_mm * np.sin(points @ self.shears[axis] + self.phases[axis])
        return points


def _in_ball(rng: np.random.Generator) -> np.ndarray:
    direction = rng.normal(size=3)
    return direction / np.linalg.norm(direction) * rng.uniform() ** (1 / 3)


def affine(matrix: np.ndarray, shift: Sequence[float]) -> np.ndarray:
    """Make a ``(4, 4)`` matrix from a ``(3, 3)`` matrix and a shift."""
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = matrix, shift
    return result


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a ``(4, 4)`` matrix to ``(..., 3)`` points."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


@dataclass(frozen=True)
class Scan:
    """One volume: ``data`` ``(i, j, k)`` and ``affine`` ``(4, 4)``, voxel to RAS mm."""

    data: np.ndarray
    affine: np.ndarray

    @property
    def spacing_mm(self) -> np.ndarray:
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def sees(self, points: np.ndarray, margin_voxels: float = 1.0) -> np.ndarray:
        """Check whether points ``(..., 3)`` are at least ``margin_voxels`` inside the outermost voxel centres."""
        voxels = apply(np.linalg.inv(self.affine), points)
        return ((voxels >= margin_voxels) & (voxels <= np.array(self.data.shape) - 1 - margin_voxels)).all(axis=-1)

    def stored(self, axes: str) -> "Scan":
        """Store the same voxels at the same positions along other axes, such as "LPI"."""
        image = nibabel.Nifti1Image(self.data, self.affine)
        old, new = nibabel.io_orientation(self.affine), nibabel.orientations.axcodes2ornt(axes)
        image = image.as_reoriented(nibabel.orientations.ornt_transform(old, new))
        return Scan(np.asarray(image.dataobj), image.affine)


def voxel_grid(
    extent_mm: Sequence[float],
    spacing_mm: Sequence[float],
    rotation: np.ndarray,
    centre: Sequence[float] = (0, 0, 0),
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return affine and size of a field of view of ``extent_mm``, or of 24 voxels if that is more, along each axis."""
    size = np.maximum(np.round(np.divide(extent_mm, spacing_mm)).astype(int), LEAST_VOXELS)
    matrix = rotation * np.asarray(spacing_mm)
    return affine(matrix, centre - matrix @ ((size - 1) / 2)), tuple(int(n) for n in size)


def acquire(
    body: Body, motion: Motion, timepoint: int, grid: np.ndarray, size: Sequence[int], noise: float = 8.0
) -> Scan:
    """Scan the moved body. Voxels longer than 3 mm average over their volume, as thick slices do; ``noise`` is the
    standard deviation of the noise."""
    parts = np.ceil(np.linalg.norm(grid[:3, :3], axis=0) / 3 - 1e-6).astype(int)
    offsets = [(np.arange(n) + 0.5) / n - 0.5 for n in parts]
    data = np.zeros(size)
    for offset in product(*offsets):
        axes = [np.arange(n) + shift for n, shift in zip(size, offset)]
        points = apply(grid, np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1))
        data += body.signal(motion.inverse(points), timepoint) / parts.prod()
    data += noise * np.random.default_rng(timepoint).normal(size=size)
    return Scan(data.astype(np.float32), grid)


@dataclass(frozen=True)
class Protocol:
    """Protocol by which one patient is scanned K times.

    Args:
        seed: of the body, its motion and the fields of view.
        orientations: K indices into ORIENTATIONS.
        spacings_mm: K times three voxel sizes, along the stored axes.
        follows: the field of view moves with the patient and the header says so; otherwise it stays where it is while
            the patient moves in it.
        storage: one of STORAGES. All volumes of a 4D file are on the first one's grid.
        rotation_degrees, shift_mm, amplitude_mm: most of each between any two scans; the last of smooth motion.
        tilt_degrees: most by which a field of view is oblique.
        most_voxels: of a scan; a finer one is coarsened.
    """

    seed: int
    orientations: Sequence[int]
    spacings_mm: Sequence[Sequence[float]]
    follows: bool = True
    storage: str = "nii.gz"
    rotation_degrees: float = 15.0
    shift_mm: float = 30.0
    amplitude_mm: float = 2.0
    tilt_degrees: float = 20.0
    most_voxels: int = 40**3


@dataclass(frozen=True)
class Examination:
    """K scans, and ``points`` ``(K, P, 3)``, the positions in each scan of P points of tissue that all scans cover."""

    scans: list[Scan]
    points: np.ndarray


def examine(protocol: Protocol) -> Examination:
    """Simulate a protocol."""
    rng, number = np.random.default_rng(protocol.seed), len(protocol.orientations)
    body = Body(rng, number)
    # Each scan moves by up to half of the maximum, so that no two differ by more than the maximum.
    limits = protocol.rotation_degrees / 2, protocol.shift_mm / 2, 0.015, protocol.amplitude_mm / 2
    motions = [Motion.random(rng, *limits) for _ in range(number)]
    scans = []
    for k, (motion, orientation, spacing) in enumerate(zip(motions, protocol.orientations, protocol.spacings_mm)):
        grid, size = _field_of_view(rng, protocol, ORIENTATIONS[orientation], spacing)
        if protocol.follows:
            rigid = Rotation.from_matrix(motion.matrix[:3, :3]).as_matrix()
            grid = affine(rigid, motion.matrix[:3, 3]) @ grid
        if protocol.storage == "4D" and scans:
            grid, size = scans[0].affine, scans[0].data.shape
        scans.append(acquire(body, motion, k, grid, size))
    return Examination(scans, landmarks(rng, body, motions, scans))


def _field_of_view(
    rng: np.random.Generator, protocol: Protocol, orientation: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, tuple[int, ...]]:
    tilt = Rotation.from_rotvec(np.deg2rad(protocol.tilt_degrees) * _in_ball(rng)).as_matrix()
    extent, spacing, centre = rng.uniform(95, 125, 3), np.array(spacing), 5 * _in_ball(rng)
    while True:
        grid, size = voxel_grid(extent, spacing, tilt @ orientation, centre)
        if np.prod(size) <= protocol.most_voxels or spacing.min() >= COARSEST_MM:
            return grid, size
        spacing = np.minimum(1.1 * spacing, COARSEST_MM)


def landmarks(
    rng: np.random.Generator, body: Body, motions: Sequence[Motion], scans: Sequence[Scan], number: int = 200
) -> np.ndarray:
    """Return at most ``number`` points in the body that all scans cover, in each timepoint, ``(K, P, 3)``."""
    points = rng.uniform(-1, 1, (20 * number, 3)) * body.radii
    points = points[body.depth(points) > 0.1]
    mapped = np.stack([motion(points) for motion in motions])
    covered = np.all([scan.sees(p) for scan, p in zip(scans, mapped)], axis=0)
    return mapped[:, covered][:, :number]


def moved_pair(
    seed: int, degrees: float, shift_mm: float, extent_mm: float, spacing_mm: float, shear: float = 0.0
) -> Examination:
    """Two scans on one grid; in the second the patient has turned by ``degrees`` and moved by ``shift_mm``. With
    ``shear`` the slices are shifted along the second axis by this share of their distance, as by a tilted gantry."""
    rng = np.random.default_rng(seed)
    axis, direction = Rotation.random(2, rng=rng).as_matrix()[:, 0]
    turn = Rotation.from_rotvec(np.deg2rad(degrees) * axis).as_matrix()
    body, motions = Body(rng, 2), [Motion(np.eye(4)), Motion(affine(turn, shift_mm * direction))]
    grid, size = voxel_grid([extent_mm] * 3, [spacing_mm] * 3, np.eye(3))
    grid = grid @ affine([[1, 0, 0], [0, 1, shear], [0, 0, 1]], (0, 0, 0))
    scans = [acquire(body, motion, k, grid, size) for k, motion in enumerate(motions)]
    return Examination(scans, landmarks(rng, body, motions, scans))


def save(scans: Sequence[Scan], folder: Path, storage: str = "nii.gz", dtype: type = np.float32) -> list[str]:
    """Write a series and return its files' names: one 4D NIfTI, or a NIfTI (by nibabel), NRRD or MHA (by SimpleITK) for
    each scan. Integer types are rounded to."""
    folder.mkdir(parents=True, exist_ok=True)
    volumes = [(np.round(s.data) if np.issubdtype(dtype, np.integer) else s.data).astype(dtype) for s in scans]
    if storage == "4D":
        _save_nifti(np.stack(volumes, axis=-1), scans[0].affine, folder / "series.nii.gz")
        return [str(folder / "series.nii.gz")]
    files = [folder / f"t{k}.{storage}" for k in range(len(scans))]
    for scan, volume, file in zip(scans, volumes, files):
        if storage.startswith("nii"):
            _save_nifti(volume, scan.affine, file)
        else:
            image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.T))
            image.SetSpacing(scan.spacing_mm.tolist())
            image.SetDirection((LPS[:, None] * scan.affine[:3, :3] / scan.spacing_mm).ravel().tolist())
            image.SetOrigin((LPS * scan.affine[:3, 3]).tolist())
            SimpleITK.WriteImage(image, str(file))
    return [str(file) for file in files]


def _save_nifti(data: np.ndarray, matrix: np.ndarray, file: Path) -> None:
    image = nibabel.Nifti1Image(data, matrix)
    image.set_qform(matrix, code=1)
    image.set_sform(matrix, code=1)
    nibabel.save(image, file)


def register(files: Sequence[str], output: Path, *options: str) -> Path:
    """Run the command line and return ``output``."""
    assert main(["register", *files, "--output", str(output), *options]) == 0
    return output


class Registered:
    """Results of a registration, read by SimpleITK."""

    def __init__(self, folder: Path):
        number = len(list(folder.glob("inverse_ddf_*.nii.gz")))
        self._to_timepoint = [_Field(folder / f"ddf_{k:02d}.nii.gz") for k in range(number)]
        self._to_common = [_Field(folder / f"inverse_ddf_{k:02d}.nii.gz") for k in range(number)]

    def transport(self, points: np.ndarray, here: int, there: int) -> np.ndarray:
        """Map ``(P, 3)`` points from timepoint ``here`` to ``there``; NaN where they leave the grid of a field."""
        return self._to_timepoint[there](self._to_common[here](points))

    def errors_mm(self, points: np.ndarray) -> np.ndarray:
        """Distances of all carried ``points`` ``(K, P, 3)`` to where they should be, between every two timepoints, in
        both directions. Fails where more than a tenth leave the fields' grids."""
        pairs = permutations(range(len(points)), 2)
        errors = np.concatenate(
            [np.linalg.norm(self.transport(points[i], i, j) - points[j], axis=-1) for i, j in pairs]
        )
        assert np.isfinite(errors).mean() > 0.9
        return errors[np.isfinite(errors)]

    def transports(self, points: np.ndarray) -> np.ndarray:
        """Map the points of each timepoint to each timepoint, ``(K, K, P, 3)``."""
        number = range(len(points))
        return np.stack([[self.transport(points[i], i, j) for j in number] for i in number])


class _Field:
    """Map points by ``p + field(p)`` with SimpleITK; NaN outside the grid, where SimpleITK has no displacement."""

    def __init__(self, file: Path):
        image = SimpleITK.Cast(SimpleITK.ReadImage(str(file)), SimpleITK.sitkVectorFloat64)
        self._grid = SimpleITK.Image(image.GetSize(), SimpleITK.sitkUInt8)
        self._grid.CopyInformation(image)
        self._transform = SimpleITK.DisplacementFieldTransform(image)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        mapped = np.full(points.shape, np.nan)
        last = np.array(self._grid.GetSize()) - 1
        for n, point in enumerate(points * LPS):
            if np.isfinite(point).all():
                index = np.array(self._grid.TransformPhysicalPointToContinuousIndex(point.tolist()))
                if ((index >= 0) & (index <= last)).all():
                    mapped[n] = self._transform.TransformPoint(point.tolist())
        return mapped * LPS
