from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from groupmorph_monai.data import LoadSeriesd, make_phantom, read_series
from groupmorph_monai.errors import InputError


def test_the_working_spacing_is_met_and_landmarks_follow(phantom, series):
    folder = Path(series[0]).parent
    item = LoadSeriesd(spacing_mm=2.0)(
        {"image": series, "landmarks": [str(folder / f"landmarks_{k:02d}.csv") for k in range(6)]}
    )
    np.testing.assert_allclose(np.linalg.norm(item["affine"][:3, :3], axis=0), 2.0)
    native = nibabel.load(series[0]).affine
    for k in range(6):
        there = item["landmarks"][k].numpy() @ item["affine"].numpy()[:3, :3].T + item["affine"].numpy()[:3, 3]
        expected = phantom["landmarks"][k].numpy() @ native[:3, :3].T + native[:3, 3]
        np.testing.assert_allclose(there, expected, atol=1e-4)


def test_a_path_and_a_series_that_is_read_give_the_same(series):
    by_path, read = LoadSeriesd()({"image": series}), LoadSeriesd()({"image": read_series(series)})
    torch.testing.assert_close(by_path["image"], read["image"])
    expected = np.stack([nibabel.load(file).get_fdata() for file in series])
    np.testing.assert_allclose(by_path["image"], expected, rtol=1e-6)


def test_a_phantom_has_the_keys_of_a_real_series():
    item = LoadSeriesd()({"phantom": {"seed": 2, "size": (16, 16, 16), "timepoints": 3, "landmarks": 5}})
    expected = make_phantom(2, (16, 16, 16), 3, landmarks=5)
    assert {"image", "affine", "landmarks"} <= set(item)
    torch.testing.assert_close(item["image"].as_tensor(), expected["image"])
    torch.testing.assert_close(item["landmarks"], expected["landmarks"])


def test_another_number_of_timepoints_is_refused(series):
    with pytest.raises(InputError, match="K = 6.*got 4"):
        LoadSeriesd(timepoints=6)({"image": series[:4]})
