"""The back end for monai-physio recovers known motion, resampled by monai-physio itself."""

import numpy as np
import pytest

pytest.importorskip("monai_physio", reason="pip install monai-physio")

import itk  # noqa: E402
from monai_physio import ProcessTransforms, RegisterTimeSeriesImages  # noqa: E402

from groupmorph_monai.apps.monai_physio import RegisterTimeSeriesGroupMorph  # noqa: E402
from groupmorph_monai.data import make_phantom  # noqa: E402

pytestmark = pytest.mark.slow
SPACING, ORIGIN = (1.5, 1.2, 2.0), (10.0, -20.0, 5.0)
TURN = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(5, (32, 30, 24), 3, SPACING, max_motion_voxels=2.0, landmarks=60)


@pytest.fixture(scope="module")
def images(phantom):
    """Convert the scans to ITK images on a rotated grid."""
    made = []
    for volume in phantom["image"].numpy():
        image = itk.image_from_array(np.ascontiguousarray(volume.T))
        image.SetSpacing(SPACING)
        image.SetOrigin(ORIGIN)
        image.SetDirection(itk.matrix_from_array(TURN))
        made.append(image)
    return made


@pytest.fixture(scope="module")
def result(images):
    registrar = RegisterTimeSeriesGroupMorph(overlays=["effort/fast"])
    assert isinstance(registrar, RegisterTimeSeriesImages)
    registrar.set_modality("mri")
    registrar.set_fixed_image(images[0])
    return registrar.register_time_series(images[1:], register_reference=True)


def places(phantom, k):
    """Landmarks of scan k, LPS mm."""
    return ORIGIN + phantom["landmarks"][k].numpy().astype(float) * SPACING @ TURN.T


def distance_mm(transform, points, expected):
    mapped = np.array([transform.TransformPoint(point.tolist()) for point in points])
    return np.linalg.norm(mapped - expected, axis=1).mean()


def test_points_of_the_fixed_image_and_of_the_moving_ones_find_each_other(result, phantom):
    fixed = places(phantom, 0)
    for k in (1, 2):
        moving = places(phantom, k)
        forward, inverse = (result[f"{name}_transforms"][k - 1] for name in ("fixed_to_moving", "moving_to_fixed"))
        before = np.linalg.norm(moving - fixed, axis=1).mean()
        assert before > 1 and distance_mm(forward, fixed, moving) < 0.5 * before  # 0.34 of 1.02
        assert distance_mm(inverse, moving, fixed) < 0.5 * before


def test_monai_physio_resamples_images_by_them_and_the_losses_tell_alike_images(result, images):
    tools = ProcessTransforms()
    fixed = itk.array_from_image(images[0])[4:-4, 4:-4, 4:-4]
    for image, transform in zip(images[1:], result["fixed_to_moving_transforms"]):
        warped = itk.array_from_image(tools.transform_image(image, transform, images[0]))[4:-4, 4:-4, 4:-4]
        before = np.corrcoef(fixed.ravel(), itk.array_from_image(image)[4:-4, 4:-4, 4:-4].ravel())[0, 1]
        assert np.corrcoef(fixed.ravel(), warped.ravel())[0, 1] > before
    assert all(0 < loss < 1 for loss in result["losses"])


def test_the_reference_may_stay_and_masks_count(images):
    registrar = RegisterTimeSeriesGroupMorph(overlays=["effort/no_refine"])
    registrar.set_modality("mri")
    registrar.set_fixed_image(images[0])
    mask = itk.image_from_array((itk.array_from_image(images[0]) > 100).astype(np.uint8))
    mask.CopyInformation(images[0])
    registrar.set_fixed_mask(mask)
    result = registrar.register_time_series(images, [None, mask, None], reference_frame=0, register_reference=False)
    stays = result["fixed_to_moving_transforms"][0]
    assert stays.TransformPoint([1.0, 2.0, 3.0]) == (1.0, 2.0, 3.0) and result["losses"][0] == 0
    assert len(result["moving_to_fixed_transforms"]) == len(result["losses"]) == 3


def test_mistakes_in_a_request_are_answered_in_one_line(images):
    registrar = RegisterTimeSeriesGroupMorph()
    with pytest.raises(ValueError, match="fixed image: expected one, got none"):
        registrar.register_time_series(images)
    registrar.set_fixed_image(images[0])
    with pytest.raises(ValueError, match="reference_frame: expected 0 to 2, got 3"):
        registrar.register_time_series(images, reference_frame=3)
    with pytest.raises(ValueError, match="moving_masks: expected 3, got 1"):
        registrar.register_time_series(images, [None])
