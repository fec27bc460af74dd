"""Intensities outside of tissue have no effect on the motion: masked-out air, fill values, NaN."""

import numpy as np
import pytest
from scanners import Examination, Registered, Scan, affine, moved_pair, register, save

from groupmorph_monai.apps.command_line import main


def error_mm(pair, folder, *options):
    errors = Registered(register(save(pair.scans, folder), folder / "out", *options)).errors_mm(pair.points)
    print(f"mean {errors.mean():.3f} mm")
    return errors.mean()


@pytest.mark.slow
def test_a_small_body_whose_air_is_masked_out_is_aligned(tmp_path):
    """After skull stripping, or in MRA, the 1st and the 99th percentile of all voxels are 0."""
    pair, margin = moved_pair(2, 8, 15, 144, 6), 22
    scans = []
    for scan in pair.scans:
        data = np.pad(np.where(scan.data > 100, scan.data, 0), margin)
        assert np.percentile(data, 99) == 0
        scans.append(Scan(data, scan.affine @ affine(np.eye(3), [-margin] * 3)))
    # The likelihood of this model depends on the scale of intensities, unlike the default one.
    assert error_mm(Examination(scans, pair.points), tmp_path, "--overlay", "models/voxelmorph_diff") < 2


@pytest.mark.parametrize("fill", [pytest.param(-2048, marks=pytest.mark.slow), -32768, np.nan])
def test_fill_values_are_no_tissue(fill, tmp_path):
    """Outside the round field of view of CT, or around a volume that SPM resliced."""
    pair = moved_pair(2, 8, 15, 100, 4)
    for scan in pair.scans:
        i, j, _ = np.meshgrid(*[np.linspace(-1, 1, n) for n in scan.data.shape], indexing="ij")
        scan.data[np.hypot(i, j) > 0.95] = fill
    assert error_mm(pair, tmp_path) < 0.6


def test_nan_in_the_middle_is_refused_in_one_line(tmp_path, capsys):
    pair = moved_pair(2, 8, 15, 100, 4)
    pair.scans[1].data[12, 12, 12] = np.nan
    files = save(pair.scans, tmp_path)
    assert main(["register", *files, "--output", str(tmp_path / "out")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("groupmorph")]
    assert files[1] in line and "NaN" in line and "; " in line
    assert not (tmp_path / "out").exists()
