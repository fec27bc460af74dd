"""Registration from Python, of files and of arrays."""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from json_files import read_json

import groupmorph_monai as gm
from groupmorph_monai.data import make_phantom
from groupmorph_monai.data.series import Frame, Series
from groupmorph_monai.errors import InputError

QUICK = {"initial_alignment": "none", "stationary_parts": False, "spacing_mm": 1.5}
AFFINE = np.array([[0, -1.5, 0, 10], [1.4, 0, 0, -20], [0, 0, 1.6, 5], [0, 0, 0, 1]])
MASKED_AFFINE = np.ma.array(AFFINE, mask=AFFINE == 10)


def nested(arrays, layout=torch.jagged):
    return torch.nested.nested_tensor([torch.as_tensor(array) for array in arrays], layout=layout)


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(5, size=(32, 32, 24), timepoints=3)


@pytest.fixture(scope="module")
def result(phantom):
    return gm.register(phantom["image"].numpy(), affine=AFFINE, times_s=(0, 90, 150), reference=1, **QUICK)


def millimetres(voxels):
    return torch.as_tensor(voxels).double() @ torch.from_numpy(AFFINE[:3, :3]).T + torch.from_numpy(AFFINE[:3, 3])


def test_points_of_every_scan_meet_in_the_common_space(result, phantom):
    points = [millimetres(p) for p in phantom["landmarks"]]
    common = torch.stack([t.inverse(p) for t, p in zip(result.transforms, points)])
    before, after = ((p - p[1]).norm(dim=-1).mean() for p in (torch.stack(points), common))
    assert after < 0.4 * before
    torch.testing.assert_close(common[1], points[1])


def test_the_reference_stays_and_fields_say_what_transforms_do(result, phantom):
    np.testing.assert_array_equal(result.warped[1], phantom["image"][1])
    assert not result.fields[1].any() and result.fields[0].any()
    voxel = (12, 15, 10)
    point = millimetres(voxel)
    expected_point = point + torch.from_numpy(result.fields[2][(slice(None), *voxel)])
    torch.testing.assert_close(result.transforms[2](point), expected_point.double(), atol=1e-4, rtol=0)


def test_no_image_and_no_field_on_the_working_grid_is_kept(result):
    registration = result._evaluator.state.output[0]["pred"]
    assert registration["step"] > 1 and registration["lattice_ddf"].shape[2:] < result.warped.shape[1:]
    assert not {"warped", "covered", "ddf", "inverse_ddf"} & registration.keys()


def test_another_image_of_a_timepoint_follows_it(result, phantom):
    np.testing.assert_array_equal(result.apply(phantom["image"][2].numpy(), 2), result.warped[2])
    labels = result.apply((phantom["image"][2] > 0.5).numpy().astype(np.uint8), 2, label=True)
    assert labels.dtype == np.uint8 and 0 < labels.mean() < 1
    with pytest.raises(InputError, match="timepoint: expected 0 to 2, got 3"):
        result.apply(phantom["image"][2], 3)


def test_the_folder_is_that_of_the_command(result, tmp_path):
    result.to_folder(tmp_path / "aligned")
    warped = nib.load(tmp_path / "aligned" / "warped.nii.gz")
    np.testing.assert_array_equal(np.moveaxis(warped.get_fdata(dtype=np.float32), -1, 0), np.nan_to_num(result.warped))
    np.testing.assert_allclose(warped.affine, AFFINE)
    assert {"report.json", "ddf_00.nii.gz", "inverse_ddf_02.nii.gz"} <= {
        p.name for p in (tmp_path / "aligned").iterdir()
    }
    written, verdict = read_json(tmp_path / "aligned" / "report.json")["verdict"], result.verdict
    assert (written["verdict"], written["reasons"]) == (verdict["verdict"], verdict["reasons"])
    assert len(written["checks"]) == len(verdict["checks"]) > 5
    for name, check in written["checks"].items():
        assert check == {**verdict["checks"][name], "value": pytest.approx(verdict["checks"][name]["value"], abs=1e-9)}


def test_a_mirrored_scan_has_no_verdict_of_pass(phantom, result):
    volumes = phantom["image"].numpy().copy()
    volumes[2] = volumes[2, ::-1]
    mirrored = gm.register(volumes, affine=AFFINE, reference=1, **QUICK)
    assert result.verdict["verdict"] == "PASS"
    assert mirrored.verdict["verdict"] != "PASS" and any("timepoint 2" in text for text in mirrored.verdict["reasons"])
    assert len(repr(mirrored)) < 400


def test_an_image_of_another_shape_is_not_placed_by_guess(result, phantom):
    label = phantom["image"][1].numpy() > 0.5
    with pytest.raises(InputError, match=r"image: expected shape .* that of scan 1, got .*; pass the affine"):
        result.apply(label[:-2], timepoint=1)
    part = result.apply(label[:-2], timepoint=1, affine=AFFINE, label=True)
    whole = result.apply(label, timepoint=1, label=True)
    assert (part != whole).mean() < 0.1 and part.shape == whole.shape


def test_transforms_take_points_of_numpy(result):
    points = np.array([[10, 12, 9], [4, 20, 6]])
    expected = result.transforms[2](torch.from_numpy(points).double())
    for value in (points, points.astype(float), points.tolist()):
        torch.testing.assert_close(result.transforms[2](value), expected)
        for part in result.transforms[2].transforms:
            torch.testing.assert_close(part(value), part(torch.from_numpy(points).double()))


@pytest.mark.slow
def test_files_and_arrays_give_the_same_fields(result, phantom, tmp_path):
    files = [tmp_path / f"t{k}.nii.gz" for k in range(3)]
    for file, volume in zip(files, phantom["image"].numpy()):
        nib.save(nib.Nifti1Image(volume, AFFINE), file)
    hook = sys.excepthook
    same = gm.register(np.array(list(map(str, files))), reference=1, **QUICK)
    assert sys.excepthook is hook
    np.testing.assert_allclose(same.fields, result.fields, atol=1e-4)


@pytest.mark.parametrize(
    "mistaken, message",
    [
        (lambda x: gm.register(x), "affine: expected voxel indices to RAS mm"),
        (lambda x: gm.register(list(x)), "affine: expected voxel indices to RAS mm"),
        (lambda x: gm.register("t0.nii", affine=AFFINE), "affine: not allowed with files"),
        (lambda x: gm.register(["t0.nii", "t1.nii"], affine=AFFINE), "affine: not allowed with files"),
        (
            lambda x: gm.register(np.moveaxis(x, 0, -1), affine=AFFINE),
            r"expected a volume of 4 voxels or more along every axis, got \(32, 24, 3\)",
        ),
        (lambda x: gm.register(""), "series: expected a name or path, got ''"),
        (lambda x: gm.register(None), "series: expected paths, or arrays with their affine, got None; pass a list"),
        (
            lambda x: gm.register([nib.Nifti1Image(v, AFFINE) for v in x]),
            r"series: expected paths, .* got <nibabel.*; pass .* image.get_fdata\(\) with affine=image.affine",
        ),
        (
            lambda x: gm.register(SimpleITK.Image(8, 8, 8, SimpleITK.sitkInt16)),
            "series: expected paths, .* got <SimpleITK",
        ),
        (lambda x: gm.register(["t0.nii", x[1]]), "series: expected paths, .* got array"),
        (lambda x: gm.register([nib.Nifti1Image(v, AFFINE) for v in x], AFFINE), r"such as image.get_fdata\(\)"),
        (lambda x: gm.register(np.array(["t0.nii", "t1.nii"]), affine=AFFINE), "affine: not allowed with files"),
        (
            lambda x: gm.register([np.ma.array(v, mask=k == 1) for k, v in enumerate(x)], affine=AFFINE),
            "timepoint 1: expected voxels with values, got a volume in which all are masked; correct its mask",
        ),
        (lambda x: gm.register(x, affine=MASKED_AFFINE), "affine: expected numbers, got masked entries"),
        (lambda x: gm.register(x, affine=[AFFINE, MASKED_AFFINE, AFFINE]), "affine: expected numbers, got masked"),
        (lambda x: gm.register(Series(tuple(Frame(v, MASKED_AFFINE, "own") for v in x))), "own .* got masked entries"),
        (
            lambda x: gm.register(x, affine=AFFINE, times_s=np.ma.array([0, 90, 150], mask=[0, 1, 0])),
            "times_s: expected numbers, got masked entries",
        ),
        (lambda x: gm.register([nested(v) for v in x], affine=AFFINE), "timepoint 0: .* got a nested tensor; pass"),
        (lambda x: gm.register(nested(x)), "affine: expected voxel indices to RAS mm"),
        (lambda x: gm.register(x, affine=AFFINE, reference=np.array([0, 1])), "reference: expected 'mean' or"),
        (lambda x: gm.register(Series(()), affine=AFFINE), "affine: not allowed with files"),
        (lambda x: gm.register(x, affine=AFFINE, reference="first"), "reference: expected 'mean' or the index"),
        (lambda x: gm.register(x, affine=np.eye(3)), r"affine: expected \(4, 4\) or \(3, 4, 4\), got \(3, 3\)"),
        (lambda x: gm.register(x * np.nan, affine=AFFINE), "expected finite voxels"),
        (lambda x: gm.register(x[:1], affine=AFFINE), "got one timepoint"),
        (lambda x: gm.register(Series(tuple(Frame(v * np.nan, AFFINE, "own") for v in x))), "own .* finite voxels"),
        (lambda x: gm.register(x, affine=AFFINE, times_s=[0.0]), "times_s: expected 3 times"),
        (lambda x: gm.register(x, affine=AFFINE, times_s=[0, 90, 30]), "times_s: expected times in ascending order"),
        (lambda x: gm.register(x + 0j, affine=AFFINE), "timepoint 0: expected real numbers, got complex"),
        (lambda x: gm.register(x.astype(str), affine=AFFINE), "timepoint 0: expected real numbers, got <U"),
        (lambda x: gm.register([*x, None], affine=AFFINE), "timepoint 3: expected real numbers, got object"),
        (
            lambda x: gm.register(torch.tensor(x).to_sparse(), affine=AFFINE),
            "timepoint 0: expected an array of numbers",
        ),
        (lambda x: gm.register(None, affine=AFFINE), "series: expected K volumes in memory"),
        (lambda x: gm.register(x[:, :0], affine=AFFINE), r"three axes, got float32 of shape \(0, 32, 24\)"),
        (lambda x: gm.register(x, affine=AFFINE + 0j), "affine: expected real numbers, got complex"),
        (lambda x: gm.register(x, affine=AFFINE.T), "expected an invertible affine .* last row 0, 0, 0, 1"),
        (lambda x: gm.register(Series(tuple(Frame(v, AFFINE[:3], "own") for v in x))), "own .* invertible affine"),
        (lambda x: gm.register(x, affine=AFFINE, times_s=["a", "b", "c"]), "times_s: expected real numbers"),
        (lambda x: gm.register(x, affine=AFFINE, times_s=5), "times_s: expected 3 times in seconds, got 5"),
        (lambda x: gm.register(x, affine=AFFINE, times_s=[0, 1, np.inf]), "times_s: expected 3 times in seconds"),
        (lambda x: gm.register(["t0.nii", "t1.nii"], times_s=[0, 1]), "times_s: not allowed with files"),
        (lambda x: gm.register(Series(tuple(Frame(v, AFFINE, "a") for v in x), times_s=(0, 1))), "times_s: expected 3"),
        (lambda x: gm.register(x, affine=AFFINE, mask=x[0]), "mask: expected a list of names or paths, got array"),
        (lambda x: gm.register(x, affine=AFFINE, overlays=None), "overlays: expected a list of names or paths"),
        (lambda x: gm.register(x, affine=AFFINE, device="gpu"), "--device: expected a device .* got gpu"),
        (lambda x: gm.register(x, affine=AFFINE, device=2**70), f"--device: expected a device .* got {2**70}"),
        (lambda x: gm.register(x, affine=AFFINE, device="cpu:7"), "--device: expected a device .* got cpu:7"),
        (lambda x: gm.register(x, affine=AFFINE, reference=True), "reference: expected 'mean' or the index"),
        (
            lambda x: gm.register(x, affine=AFFINE, overlays="modes/none"),
            "--overlay: expected an overlay .* got 'modes/none'",
        ),
        (lambda x: gm.register(x, affine=AFFINE, refinement_step=3), "settings: expected a setting of inference.yaml"),
        (lambda x: gm.register(x, affine=AFFINE, reference=7), "reference: expected one of the series' 3 timepoints"),
        (lambda x: gm.register(x, affine=AFFINE, overlays=["modes/none"]), "--overlay: expected an overlay"),
    ],
)
def test_a_mistake_is_one_line(phantom, mistaken, message):
    with pytest.raises(InputError, match=message) as error:
        mistaken(phantom["image"].numpy())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "mistaken, message",
    [
        (lambda r, x: r.apply(x, "1"), "timepoint: expected the index of a timepoint"),
        (lambda r, x: r.apply(x, 1.0), "timepoint: expected the index of a timepoint"),
        (lambda r, x: r.apply(x + 0j, 1), "image: expected real numbers, got complex"),
        (lambda r, x: r.apply(x[None], 1, affine=AFFINE), "image: expected three axes"),
        (lambda r, x: r.apply(x, 1, affine=AFFINE[:3]), "affine: expected an invertible affine matrix"),
        (lambda r, x: r.apply(x, 1, affine=0 * AFFINE), "affine: expected an invertible affine matrix"),
        (lambda r, x: r.apply(x, 1, affine=AFFINE + 900 * np.eye(4)[:, :1] @ np.eye(4)[3:]), "timepoint 1: .* leads"),
        (lambda r, x: r.apply(x * np.nan, 1), "image: expected finite intensities"),
        (lambda r, x: r.apply((x > 0) * (2**53 + 1), 1, label=True), r"image: expected labels up to 2\^53"),
        (lambda r, x: r.apply(nested(x), 1), "image: expected an array of numbers, got a nested tensor"),
        (lambda r, x: r.apply(x, 1, affine=MASKED_AFFINE), "affine: expected numbers, got masked entries"),
        (lambda r, x: r.to_folder(None), "folder: expected a name or path, got None"),
        (lambda r, x: r.to_folder(""), "folder: expected a name or path, got ''"),
        (lambda r, x: r.to_folder("a\0b"), "folder: expected a name or path, got 'a.x00b'"),
        (lambda r, x: r.to_folder("~/results"), "folder: expected a path, got '~/results'; .* or write it in full"),
        (lambda r, x: r.to_folder("http://a/b"), "folder: expected a path on this machine, got 'http://a/b'; mount"),
        (lambda r, x: r.to_folder(Path("x.nii.gz")), "folder: expected a folder for several files, got 'x.nii.gz'"),
        (lambda r, x: r.to_folder("x" * 300), "x: expected a path that can be used, got File name too long"),
    ],
)
def test_a_mistake_with_a_result_is_one_line(result, phantom, mistaken, message):
    with pytest.raises(InputError, match=message) as error:
        mistaken(result, phantom["image"][1].numpy())
    assert "\n" not in str(error.value)


def test_voxels_without_values_spread_no_further(result, phantom):
    image = phantom["image"][0].numpy()
    with_nan = image.copy()
    with_nan[:16] = np.nan
    masked = np.ma.masked_array(image, np.isnan(with_nan))
    warped = result.apply(image, 0)
    for undefined in (with_nan, masked):
        part = result.apply(undefined, 0)
        assert 0.3 < np.isnan(part).mean() < 0.7
        np.testing.assert_allclose(np.where(np.isnan(part), np.nan, warped), part, rtol=2e-3)


@pytest.mark.parametrize("fill", [-9999.0, 1e20, np.nan])
@pytest.mark.parametrize("label", [False, True])
def test_values_under_a_mask_contribute_nothing(result, phantom, fill, label, caplog):
    image = (100 * phantom["image"][0].numpy()).round()
    mask = np.zeros(image.shape, bool)
    mask[:16] = True
    parts = [result.apply(np.ma.array(np.where(mask, f, image), mask=mask), 0, label=label) for f in (0, fill)]
    np.testing.assert_array_equal(*parts)
    if label:
        np.testing.assert_array_equal(parts[0], result.apply(np.where(mask, 0, image), 0, label=True))
    assert not caplog.records


def test_whole_numbers_under_a_mask_may_be_any(result, phantom):
    image = (100 * phantom["image"][0].numpy()).astype(np.int64)
    masked = np.ma.array(image, mask=image < 20)
    masked.data[masked.mask] = np.iinfo(np.int64).min
    np.testing.assert_array_equal(result.apply(masked, 0, label=True), result.apply(masked.filled(0), 0, label=True))


def test_settings_take_numbers_of_numpy_and_tuples(phantom):
    few = {"refinement_levels_voxels": (16, 8), "refinement_iterations": np.array([1, 1]), "spacing_mm": np.float32(2)}
    same = {"refinement_levels_voxels": [16, 8], "refinement_iterations": [1, 1], "spacing_mm": 2}
    one, other = (
        gm.register(phantom["image"], affine=torch.tensor(AFFINE, requires_grad=True), **{**QUICK, **settings})
        for settings in (few, same)
    )
    np.testing.assert_array_equal(one.fields, other.fields)


@pytest.mark.parametrize("convert", [np.array, lambda files: np.array(files, dtype=object), list])
def test_an_array_of_paths_is_read_as_a_list_of_them(tmp_path, convert):
    files = [str(tmp_path / f"t{k}.nii.gz") for k in range(2)]
    with pytest.raises(InputError, match="t0.nii.gz: expected a file or folder, got a path that does not exist"):
        gm.register(convert(files))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_a_nested_tensor_is_a_series_of_volumes_of_any_size(phantom, layout):
    settings = {**QUICK, "refinement_levels_voxels": (16, 8), "refinement_iterations": (1, 1)}
    volumes = [phantom["image"][0], phantom["image"][1][2:]]
    one, other = (gm.register(series, AFFINE, **settings) for series in (volumes, nested(volumes, layout)))
    np.testing.assert_array_equal(one.fields, other.fields)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_points_are_refused_in_one_line(result, layout):
    with pytest.raises(InputError, match="points: expected real numbers, got .*; pass an array"):
        result.transforms[0](nested([np.zeros((2, 3)), np.zeros((1, 3))], layout))
