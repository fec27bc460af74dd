import itk
import numpy as np
import pytest
import torch

from groupmorph_monai.benchmarks.peers import elastix
from groupmorph_monai.data import make_phantom
from groupmorph_monai.evaluation.metrics import landmark_distances_mm
from groupmorph_monai.space import DisplacementField, invert
from groupmorph_monai.workflow.registration import timepoint_transforms

needs_elastix = pytest.mark.skipif(not hasattr(itk, "ParameterObject"), reason="itk-elastix is not installed")


def test_b_splines_reproduce_a_line_and_sum_to_one():
    basis = elastix.spline_basis(20, origin=-6.0, spacing=4.0, points=9)
    np.testing.assert_allclose(basis.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(basis @ (-6 + 4 * np.arange(9.0)), np.arange(20.0), atol=1e-12)


def test_a_transforms_parameters_are_read_in_elastix_order():
    """All parameters of x come first, then those of y and z, each with x fastest; a stack has one set per timepoint."""
    size, points = (6, 5, 4), (6, 6, 5)
    values = np.zeros((2, 3, 5, 6, 6))
    values[1, 1] = (np.arange(6.0) * 2 - 2)[None, None, :]  # timepoint 1 moves along y by the x coordinate
    parameter_map = {
        "GridSize": [str(n) for n in points],
        "GridOrigin": ["-2", "-2", "-2"],
        "GridSpacing": ["2", "2", "2"],
        "TransformParameters": [str(v) for v in values.ravel()],
    }
    ddf = elastix.spline_fields(parameter_map, size)
    assert ddf.shape == (2, 3, *size)
    torch.testing.assert_close(ddf[1, 1], torch.arange(6.0).view(6, 1, 1).expand(size))
    assert ddf[0].abs().max() == 0 and ddf[1, [0, 2]].abs().max() == 0


@needs_elastix
@pytest.mark.slow
@pytest.mark.parametrize("name", ["elastix_pairwise", "elastix_groupwise"])
def test_elastix_answers_with_fields_of_our_kind(name):
    phantom = make_phantom(8, (40, 36, 32), 3, max_motion_voxels=3)
    options = {"iterations": 100} if name == "elastix_groupwise" else {}
    ddf = getattr(elastix, name)(phantom["image"], **options)

    def mean(values):
        field = DisplacementField.on_voxels(values[None])
        transforms = timepoint_transforms(field, invert(field, iterations=40), torch.eye(4))
        return landmark_distances_mm(phantom["landmarks"], transforms).mean().item()

    assert mean(ddf) < 0.6 * mean(torch.zeros_like(ddf))
