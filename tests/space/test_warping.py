import pytest
import torch

from groupmorph_monai.space import AffineFlow, MultiGaussian, compose, sample, upsample_field, voxel_grid, warp
from groupmorph_monai.space.affine import apply_affine
from groupmorph_monai.space.cosine_transform import CosineTransform
from groupmorph_monai.space.warping import displace, displace_observed, full_precision, inside_volume, warp_observed

SIZE = (7, 9, 6)


def linear_field(matrix, offset, size=SIZE):
    """Make the displacement A x + b, ``(1, 1, 3, *size)``."""
    grid = voxel_grid(size, torch.empty(0, dtype=torch.float64))
    field = torch.einsum("de,eijk->dijk", matrix, grid) + offset.view(3, 1, 1, 1)
    return field[None, None]


def noise(*shape):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_identity_is_exact_on_a_non_cubic_grid():
    images = noise(2, 3, *SIZE)
    torch.testing.assert_close(
        warp(images, torch.zeros(2, 3, 3, *SIZE, dtype=torch.float64)), images, atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_integer_shift_is_a_roll_along_its_axis(axis):
    images = noise(1, 2, *SIZE)
    ddf = torch.zeros(1, 2, 3, *SIZE, dtype=torch.float64)
    ddf[:, :, axis] = 2
    rolled = images.roll(-2, dims=axis + 2)
    inside = (..., *[slice(0, n - 2) if a == axis else slice(None) for a, n in enumerate(SIZE)])
    torch.testing.assert_close(warp(images, ddf)[inside], rolled[inside], atol=1e-12, rtol=0)


def test_a_ramp_is_warped_exactly_and_in_two_dimensions_too():
    for size in (SIZE, (8, 5)):
        grid = voxel_grid(size, torch.empty(0, dtype=torch.float64))
        slopes = torch.tensor([1.0, -2.0, 0.5][: len(size)], dtype=torch.float64)
        ramp = torch.tensordot(slopes, grid, dims=1)[None, None]
        shift = torch.tensor([0.3, -0.2, 0.4][: len(size)], dtype=torch.float64)
        ddf = shift.view(1, 1, -1, *[1] * len(size)).expand(1, 1, len(size), *size)
        inside = (..., *[slice(1, n - 1) for n in size])
        torch.testing.assert_close(warp(ramp, ddf)[inside], (ramp + slopes @ shift)[inside], atol=1e-12, rtol=0)


def test_a_constant_stays_constant_under_a_shift_of_three_voxels():
    images = torch.full((1, 1, *SIZE), 4.2, dtype=torch.float64)
    torch.testing.assert_close(warp(images, torch.full((1, 1, 3, *SIZE), 3.0, dtype=torch.float64)), images)


def test_half_precision_fields_are_warped_in_float32():
    size = (320, 4, 4)
    images = voxel_grid(size, torch.empty(0))[:1][None]
    ddf = torch.full((1, 1, 3, *size), 0.5, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        warped = warp(images, ddf)
    assert warped.dtype == torch.float32
    torch.testing.assert_close(warped[0, 0, :-1], images[0, 0, :-1] + 0.5, atol=1e-3, rtol=0)


def switches():
    """Return PyTorch's settings for the precision of float32 matrix products, on CUDA and on the CPU."""
    matmul, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    return matmul.allow_tf32, torch.get_float32_matmul_precision(), matmul.fp32_precision, cpu.fp32_precision


@pytest.fixture
def precision():
    yield
    torch.set_float32_matmul_precision("highest")


def test_half_precision_is_widened_however_it_is_handed_in():
    kinds = full_precision(lambda a, b: (a.dtype, b.dtype))
    half, bfloat = torch.zeros(1, dtype=torch.float16), torch.zeros(1, dtype=torch.bfloat16)
    assert kinds(half, bfloat) == kinds(half, b=bfloat) == kinds(a=half, b=bfloat) == (torch.float32,) * 2


@pytest.mark.parametrize("allow", ["tf32", "high", "medium", "highest"])
def test_tf32_is_off_inside_full_precision_and_restored_after(allow, precision):
    if allow == "tf32":
        torch.backends.cuda.matmul.allow_tf32 = True
    else:
        torch.set_float32_matmul_precision(allow)
    before, inside = switches(), []

    @full_precision
    def observe(fail):
        inside.append((*switches()[:2], torch.is_autocast_enabled("cpu")))
        if fail:
            raise ValueError("as asked for")

    with torch.autocast("cpu", torch.bfloat16):
        observe(False)
        assert torch.is_autocast_enabled("cpu")
        with pytest.raises(ValueError, match="as asked"):
            observe(True)
    assert inside == [(False, "highest", False)] * 2
    assert switches() == before


def test_tf32_is_off_where_it_was_switched_on_for_one_backend(precision):
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    covered = full_precision(lambda: torch.backends.cuda.matmul.fp32_precision)()
    assert covered == "ieee" and torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_tf32_is_off_where_pytorch_has_one_switch_for_all(precision, monkeypatch):
    # PyTorch 2.8, the oldest version that MONAI supports, has no separate switch for each backend.
    torch.set_float32_matmul_precision("high")
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cuda, "matmul", object())
        patch.delattr(type(torch.backends.mkldnn), "matmul")
        assert full_precision(torch.get_float32_matmul_precision)() == "highest"
    assert torch.get_float32_matmul_precision() == "high"


GEOMETRY = {
    "upsampling": lambda: upsample_field(voxel_grid((80, 3, 3), torch.empty(0))[None, None], 2, (160, 5, 5)),
    "cosine transform": lambda: CosineTransform((160, 4, 4), torch.empty(0))(voxel_grid((160, 4, 4), torch.empty(0))),
    "affine map": lambda: apply_affine(torch.tensor(AFFINE), voxel_grid((160, 4, 4), torch.empty(0))),
    "composition": lambda: compose(*[0.3 * voxel_grid((160, 4, 4), torch.empty(0))[None, None]] * 2),
    "affine flow": lambda: AffineFlow()(0.01 * voxel_grid((160, 4, 4), torch.empty(0))[None, None]),
    "momenta": lambda: MultiGaussian()(voxel_grid((160, 4, 4), torch.empty(0))),
}
AFFINE = [[1.01, 0.02, 0.0, 3.1], [0.0, 0.97, 0.1, -2.2], [0.05, 0.0, 1.0, 0.7], [0.0, 0.0, 0.0, 1.0]]


@pytest.mark.parametrize("name", GEOMETRY)
def test_coordinates_are_the_same_under_autocast(name):
    expected = GEOMETRY[name]()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(GEOMETRY[name](), expected)
    assert expected.abs().max() > 1


def test_labels_keep_their_values():
    labels = (noise(1, 1, *SIZE) * 5).round()
    ddf = torch.full((1, 1, 3, *SIZE), 0.3, dtype=torch.float64)
    torch.testing.assert_close(warp(labels, ddf, mode="nearest"), labels)


def test_sample_reads_a_ramp_at_any_point():
    grid = voxel_grid(SIZE, torch.empty(0, dtype=torch.float64))[None]
    points = noise(1, 3, 5, 1, 1) * (torch.tensor(SIZE, dtype=torch.float64) - 1).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(sample(grid, points), points, atol=1e-12, rtol=0)


def test_composition_of_linear_maps_is_their_product():
    a = torch.tensor([[0.05, 0.1, 0.0], [-0.1, 0.02, 0.03], [0.0, 0.04, -0.05]], dtype=torch.float64)
    b = torch.tensor([[-0.04, 0.0, 0.02], [0.03, 0.05, 0.0], [0.0, -0.02, 0.03]], dtype=torch.float64)
    size = (16, 16, 16)
    centre = torch.full((3,), 7.5, dtype=torch.float64)
    outer, inner = linear_field(a, -a @ centre, size), linear_field(b, -b @ centre, size)
    product = a + b + a @ b
    expected = linear_field(product, -product @ centre, size)
    inside = (..., slice(3, -3), slice(3, -3), slice(3, -3))
    torch.testing.assert_close(compose(outer, inner)[inside], expected[inside], atol=1e-10, rtol=0)


def test_one_inner_field_serves_all_timepoints():
    outer, inner = noise(1, 3, 3, *SIZE), noise(1, 1, 3, *SIZE)
    expected = torch.cat([compose(outer[:, k : k + 1], inner) for k in range(3)], dim=1)
    torch.testing.assert_close(compose(outer, inner), expected)


@pytest.mark.parametrize("size", [(9, 7, 5), (10, 8, 6)])
def test_upsampling_puts_coarse_voxel_i_on_fine_voxel_two_i(size):
    coarse = [-(-n // 2) for n in size]
    field = voxel_grid(coarse, torch.empty(0, dtype=torch.float64))[None, None]
    fine = upsample_field(field, 2, size)
    covered = (..., *[slice(0, 2 * n - 1) for n in coarse])
    expected = voxel_grid(size, torch.empty(0, dtype=torch.float64))[None, None]
    torch.testing.assert_close(fine[covered], expected[covered], atol=1e-12, rtol=0)
    last = torch.tensor([2.0 * (n - 1) for n in coarse], dtype=torch.float64)
    torch.testing.assert_close(fine[0, 0, :, -1, -1, -1], last)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"ddf: .*\(1, 2, 7, 9, 6\).*\(1, 3, 3, 7, 9, 6\)"):
        warp(torch.zeros(1, 2, *SIZE), torch.zeros(1, 3, 3, *SIZE))
    with pytest.raises(ValueError, match=r"field: expected spatial shape \(4, 5, 3\)"):
        upsample_field(torch.zeros(1, 1, 3, 4, 4, 3), 2, SIZE)


@pytest.mark.parametrize("shift", [-0.6, -0.25, 0.0, 0.1, 0.4, 0.5])
def test_the_measured_weight_falls_to_0_within_half_a_voxel(shift):
    """The weight is 0 at the outer faces of the volume and halfway to an unobserved voxel."""
    image = torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    observed, ddf = torch.ones_like(image), torch.zeros(1, 3, *SIZE)
    observed[:, :, 3], ddf[:, 0] = 0, shift
    values, weight = displace_observed(image, observed, ddf)
    torch.testing.assert_close(values, displace(image, ddf))
    into = max(0, 1 - 2 * abs(shift))  # weight beside an unobserved voxel and at an outer face
    expected = torch.ones(SIZE[0])
    expected[3] = max(0, 2 * abs(shift) - 1)
    expected[2 if shift > 0 else 4] = into
    expected[-1 if shift > 0 else 0] = into
    torch.testing.assert_close(weight, expected.view(-1, 1, 1).expand(1, 1, *SIZE))


def test_observed_voxels_of_a_warped_image_lie_inside_and_were_observed():
    size, generator = (7, 6, 8), torch.Generator().manual_seed(0)
    images = torch.rand(1, 2, *size, generator=generator)
    observed = (torch.rand(1, 2, *size, generator=generator) > 0.3).float()
    ddf = 2 * torch.randn(1, 2, 3, *size, generator=generator)
    warped, valid = warp_observed(images, observed, ddf)
    within = inside_volume(ddf[0])[None]
    torch.testing.assert_close(warped, warp(images, ddf))
    assert torch.equal(valid, within & (warp(observed, ddf) > 0.5)) and valid.any() and not valid.all()
    values, everywhere = warp_observed(images, None, ddf)
    assert torch.equal(values, warped) and torch.equal(everywhere, within)
