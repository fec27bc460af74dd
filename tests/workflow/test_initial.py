import nibabel
import numpy as np
import pytest
import torch

from groupmorph_monai.data import Series, make_phantom
from groupmorph_monai.data.readers import Frame
from groupmorph_monai.data.resampling import resample
from groupmorph_monai.errors import InputError
from groupmorph_monai.space import compose_affine
from groupmorph_monai.workflow import AlignInitiald, ComposeInitiald


def rotation(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def about(matrix, centre, shift):
    full = np.eye(4)
    full[:3, :3], full[:3, 3] = matrix, centre - matrix @ centre + shift
    return full


@pytest.fixture(scope="module")
def moved():
    """Three frames of one body: as it is, turned and shifted by 12 mm, and where another header puts it 40 mm away."""
    volume = make_phantom(5, size=(48, 44, 40), timepoints=2)["image"][0].numpy()
    affine = np.diag([1.5, 1.5, 2.0, 1.0])
    affine[:3, 3] = (-20, 10, 5)
    centre = affine[:3, :3] @ (np.array(volume.shape) - 1) / 2 + affine[:3, 3]
    turned = about(rotation(8), centre, [12, -6, 4])
    # A point x of frame 0 lies at turned x in frame 1: frame 1 shows at y what frame 0 shows at turned^-1 y.
    second = resample(volume[None], affine, np.linalg.inv(turned) @ affine, volume.shape)[0]
    shifted = affine.copy()
    shifted[:3, 3] += (0, 40, 0)
    frames = tuple(
        Frame(v, a, f"t{k}") for k, (v, a) in enumerate([(volume, affine), (second, affine), (volume, shifted)])
    )
    truth = np.stack([np.eye(4), turned, about(np.eye(3), centre, [0, 40, 0])])
    return frames, truth, centre, affine


def errors_mm(maps, truth, centre):
    points = np.concatenate([(centre + np.random.default_rng(0).uniform(-20, 20, (50, 3))).T, np.ones((1, 50))])
    return [np.linalg.norm((m @ points - t @ points)[:3], axis=0).mean() for m, t in zip(maps.numpy(), truth)]


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_known_maps_are_found(moved, kind):
    frames, truth, centre, _ = moved
    maps = AlignInitiald(kind=kind).maps(frames)
    assert max(errors_mm(maps, truth, centre)) < 0.5
    if kind == "rigid":
        torch.testing.assert_close(maps[:, :3, :3] @ maps[:, :3, :3].mT, torch.eye(3).double().expand(3, 3, 3))


@pytest.mark.parametrize("number", [1, 2])
def test_what_lies_outside_of_the_mask_does_not_count(moved, number, tmp_path):
    """A bright table that stays where it is, while the body above it moves."""
    frames, _, centre, affine = moved
    body = np.pad(frames[0].data, ((0, 0), (0, 24), (0, 0)))
    truth = about(np.eye(3), centre, [0, 0, 6])
    shown = resample(body[None], affine, np.linalg.inv(truth) @ affine, body.shape)[0]
    table = 3 * make_phantom(6, size=body.shape, timepoints=2)["image"][0].numpy()
    still = np.indices(body.shape)[1] >= frames[0].data.shape[1]
    pair = tuple(Frame(np.where(still, table, x), affine, "t") for x in (body, shown))
    files = []
    for k in range(number):
        files.append(str(tmp_path / f"mask{k}.nii.gz"))
        nibabel.save(nibabel.Nifti1Image((~still).astype(np.uint8), affine), files[-1])
    item = {"image": Series(pair, None, None)}
    truths = [np.eye(4), truth]
    align = AlignInitiald(kind="rigid")
    assert errors_mm(align({**item, "mask": files})["initial"], truths, centre)[1] < 0.1
    assert errors_mm(align(item)["initial"], truths, centre)[1] > 2


def test_another_reference_stays(moved):
    frames, truth, centre, _ = moved
    series = Series(frames, None, None)
    maps = AlignInitiald(kind="rigid", reference=1)({"image": series})["initial"]
    torch.testing.assert_close(maps[1], torch.eye(4).double())
    assert errors_mm(maps[:1], [np.linalg.inv(truth[1])], truth[1][:3, :3] @ centre + truth[1][:3, 3])[0] < 0.5


def test_an_aligned_series_stays_where_its_headers_put_it(moved):
    frames, *_ = moved
    maps = AlignInitiald().maps((frames[0], frames[0], frames[0]))
    torch.testing.assert_close(maps, torch.eye(4).double().expand(3, 4, 4), atol=1e-6, rtol=0)


def test_none_adds_nothing_and_another_kind_is_refused(moved):
    series = Series(moved[0], None, None)
    assert AlignInitiald(kind="none")({"image": series}) == {"image": series}
    with pytest.raises(InputError, match="initial_alignment: expected one of affine, rigid or none, got 'elastic'"):
        AlignInitiald(kind="elastic")


def test_composed_fields_lead_where_the_maps_and_the_field_lead():
    generator = torch.Generator().manual_seed(0)
    size = (14, 12, 10)
    ddf = torch.nn.functional.interpolate(torch.rand(2, 3, 3, 3, 3, generator=generator), size=size, mode="trilinear")
    matrix = torch.eye(4).repeat(2, 1, 1)
    matrix[1, :3, :3] += 0.1 * torch.rand(3, 3, generator=generator)
    matrix[1, :3, 3] = torch.tensor([2.0, -1.0, 0.5])
    total, back = compose_affine(ddf.clone(), torch.zeros_like(ddf), matrix)
    torch.testing.assert_close(total[0], ddf[0])
    x = torch.tensor([5.0, 4.0, 3.0])
    expected = matrix[1, :3, :3] @ (x + ddf[1, :, 5, 4, 3]) + matrix[1, :3, 3]
    torch.testing.assert_close(x + total[1, :, 5, 4, 3], expected)
    expected = torch.linalg.solve(matrix[1, :3, :3], x - matrix[1, :3, 3])
    torch.testing.assert_close(x + back[1, :, 5, 4, 3], expected)


def test_composing_is_in_voxels_of_the_working_grid():
    affine = torch.diag(torch.tensor([2.0, 2.0, 4.0, 1.0]))
    shift = torch.eye(4).repeat(2, 1, 1)
    shift[1, :3, 3] = torch.tensor([6.0, 0.0, -4.0])
    fields = {"ddf": torch.zeros(2, 3, 4, 4, 4), "inverse_ddf": torch.zeros(2, 3, 4, 4, 4)}
    item = ComposeInitiald()({"pred": fields, "affine": affine, "initial": shift})
    torch.testing.assert_close(item["pred"]["ddf"][1, :, 2, 2, 2], torch.tensor([3.0, 0.0, -1.0]))
    torch.testing.assert_close(item["pred"]["inverse_ddf"][1, :, 2, 2, 2], torch.tensor([-3.0, 0.0, 1.0]))
    assert ComposeInitiald()({"pred": fields}) == {"pred": fields}
