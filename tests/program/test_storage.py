"""The storage and the order of a series do not change the result."""

import numpy as np
import pytest
from scanners import Protocol, Registered, Scan, affine, apply, examine, register, save
from scipy.spatial.transform import Rotation

SAME_MM, ROUNDED_MM = 0.01, 0.05
# A rotation by 48 degrees about an arbitrary axis, and a shift.
WORLD = affine(Rotation.from_rotvec([0.3, -0.5, 0.6]).as_matrix(), (12, -7, 20))


@pytest.fixture(scope="module")
def examination():
    return examine(Protocol(11, (0,) * 3, ((4, 4, 4), (4.2, 4.2, 4.2), (4, 3.8, 4.4)), tilt_degrees=8))


@pytest.fixture(scope="module")
def expected(examination, tmp_path_factory):
    """Map the points of each timepoint to each timepoint."""
    folder = tmp_path_factory.mktemp("expected")
    files = save(examination.scans, folder / "scans")
    return Registered(register(files, folder / "out")).transports(examination.points)


def difference_mm(carried, expected):
    """Compute the greatest distance between points mapped by two registrations, where both have fields."""
    distance = np.linalg.norm(carried - expected, axis=-1)
    assert np.isfinite(distance).mean() > 0.9
    print(f"mean {np.nanmean(distance):.4f} mm, greatest {np.nanmax(distance):.4f} mm")
    return np.nanmax(distance)


def test_the_points_are_mapped_to_their_true_positions(examination, expected):
    """Without this test, two results could agree by both being the identity."""
    errors = np.linalg.norm(expected - examination.points, axis=-1)
    assert np.nanmean(errors) < 0.5 * 4


def slow(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize("axes", ["mixed", *slow("LPI", "PIR", "LAS", "SRA")])
def test_the_orientation_on_disk_does_not_matter(axes, examination, expected, tmp_path):
    each = ["LPI", "PIR", "SLA"] if axes == "mixed" else [axes] * 3
    files = save([scan.stored(a) for scan, a in zip(examination.scans, each)], tmp_path)
    carried = Registered(register(files, tmp_path / "out")).transports(examination.points)
    assert difference_mm(carried, expected) < SAME_MM


def test_an_oblique_world_turns_the_result(examination, expected, tmp_path):
    files = save([Scan(scan.data, WORLD @ scan.affine) for scan in examination.scans], tmp_path)
    carried = Registered(register(files, tmp_path / "out")).transports(apply(WORLD, examination.points))
    assert difference_mm(apply(np.linalg.inv(WORLD), carried), expected) < SAME_MM


@pytest.mark.parametrize("storage", ["nrrd", *slow("mha")])
def test_the_file_format_does_not_matter(storage, examination, expected, tmp_path):
    files = save(examination.scans, tmp_path, storage)
    carried = Registered(register(files, tmp_path / "out")).transports(examination.points)
    assert difference_mm(carried, expected) < SAME_MM


@pytest.mark.slow
def test_one_4d_file_is_its_volumes(tmp_path):
    one = examine(Protocol(12, (0, 0), ((4, 4, 4),) * 2, follows=False, storage="4D", shift_mm=10))
    carried = [
        Registered(register(save(one.scans, tmp_path / s, s), tmp_path / s / "out")).transports(one.points)
        for s in ("4D", "nii.gz")
    ]
    assert difference_mm(*carried) < SAME_MM


def test_integers_are_as_good(examination, expected, tmp_path):
    files = save(examination.scans, tmp_path, dtype=np.int16)
    carried = Registered(register(files, tmp_path / "out")).transports(examination.points)
    assert difference_mm(carried, expected) < ROUNDED_MM


@pytest.mark.parametrize("order", [(2, 0, 1), *slow((0, 2, 1))], ids=str)
def test_reordering_the_timepoints_reorders_the_result(order, examination, expected, tmp_path):
    order = list(order)
    files = save([examination.scans[k] for k in order], tmp_path)
    carried = Registered(register(files, tmp_path / "out")).transports(examination.points[order])
    assert difference_mm(carried, expected[order][:, order]) < SAME_MM
