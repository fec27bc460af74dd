"""Values of different scans are comparable, or a warning says that they may not be."""

import pytest

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402
from dicom_exports import AFFINE, SIZE, dynamic, refused, volumes  # noqa: E402

from groupmorph_monai.data.reading.readers import read_series  # noqa: E402


@pytest.mark.parametrize("slope", ["0", "0.0"])
def test_a_slope_of_zero_is_refused(tmp_path, slope):
    """It would make one slice black."""
    images = dynamic()
    images[9].RescaleSlope, images[9].RescaleIntercept = slope, "0"
    refused(exports.save(images, tmp_path), "expected a rescale slope other than 0")


@pytest.mark.parametrize("lost", ["none", "one timepoint", "all", "all, equal slopes"])
def test_a_missing_scale_slope_of_philips_is_a_warning(tmp_path, lost):
    """An anonymiser removes private attributes."""
    images = exports.philips(volumes(), AFFINE)
    lacking = {"none": [], "one timepoint": images[2 * SIZE[2] : 3 * SIZE[2]]}.get(lost, images)
    for image in lacking:
        del image[0x2005, 0x100E]
        if lost == "all, equal slopes":
            image.RescaleSlope = "1"
    warnings = read_series(exports.save(images, tmp_path)).warnings
    if lost in ("none", "all, equal slopes"):
        assert not warnings
    else:
        (warning,) = warnings
        assert f"private scale slope is missing from {len(lacking)} of {len(images)} images" in warning


def mapping(slope):
    item = pydicom.Dataset()
    item.RealWorldValueFirstValueMapped, item.RealWorldValueLastValueMapped = 0, 4095
    item.RealWorldValueSlope, item.RealWorldValueIntercept = slope, 0.0
    return [item]


def test_a_mapping_that_repeats_the_slope_for_display_is_no_doubt(tmp_path):
    images = exports.philips(volumes(), AFFINE)
    for number, image in enumerate(images):
        k = number // SIZE[2]
        image.RescaleSlope, image[0x2005, 0x100E].value = (1.2, 2.1, 1.5, 1.7)[k], (0.013, 0.009, 0.011, 0.012)[k]
        image.RealWorldValueMappingSequence = mapping(image.RescaleSlope)
    assert not read_series(exports.save(images, tmp_path)).warnings


@pytest.mark.parametrize("vendor", ["siemens", "enhanced", "philips"])
@pytest.mark.parametrize("contradicting", [True, False])
def test_real_world_values_on_another_scale_are_a_warning(tmp_path, vendor, contradicting):
    """Philips maps values to its scale, by which they are converted."""
    images = getattr(exports, vendor)(volumes(), AFFINE)
    groups = images[0].PerFrameFunctionalGroupsSequence if vendor == "enhanced" else images
    for number, group in enumerate(groups):
        slope = 1.0 + number // SIZE[2] if contradicting else 3.0
        if vendor == "philips":
            slope /= group[0x2005, 0x100E].value
        group.RealWorldValueMappingSequence = mapping(slope)
    warnings = read_series(exports.save(images, tmp_path)).warnings
    assert ["Real World Value Mapping" in warning for warning in warnings] == [True] * contradicting
