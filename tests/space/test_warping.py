import pytest
import torch

from groupmorph_monai.space import DisplacementField, Lattice, compose, displace, invert, pull_back, voxel_grid, warp
from groupmorph_monai.space.warping import inside_volume, warp_observed

SIZE = (7, 9, 6)
on_voxels = DisplacementField.on_voxels


def linear_field(matrix, offset, size=SIZE):
    """Make the displacement A x + b, ``(1, 1, 3, *size)``."""
    grid = voxel_grid(size, torch.empty(0, dtype=torch.float64))
    field = torch.einsum("de,eijk->dijk", matrix, grid) + offset.view(3, 1, 1, 1)
    return on_voxels(field[None, None])


def noise(*shape):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_identity_is_exact_on_a_non_cubic_grid():
    images = noise(2, 3, *SIZE)
    identity = on_voxels(torch.zeros(2, 3, 3, *SIZE, dtype=torch.float64))
    torch.testing.assert_close(warp(images, identity), images, atol=1e-12, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_integer_shift_is_a_roll_along_its_axis(axis):
    images = noise(1, 2, *SIZE)
    ddf = torch.zeros(1, 2, 3, *SIZE, dtype=torch.float64)
    ddf[:, :, axis] = 2
    rolled = images.roll(-2, dims=axis + 2)
    inside = (..., *[slice(0, n - 2) if a == axis else slice(None) for a, n in enumerate(SIZE)])
    torch.testing.assert_close(warp(images, on_voxels(ddf))[inside], rolled[inside], atol=1e-12, rtol=0)


def test_a_ramp_is_warped_exactly_and_in_two_dimensions_too():
    for size in (SIZE, (8, 5)):
        grid = voxel_grid(size, torch.empty(0, dtype=torch.float64))
        slopes = torch.tensor([1.0, -2.0, 0.5][: len(size)], dtype=torch.float64)
        ramp = torch.tensordot(slopes, grid, dims=1)[None, None]
        shift = torch.tensor([0.3, -0.2, 0.4][: len(size)], dtype=torch.float64)
        ddf = shift.view(1, 1, -1, *[1] * len(size)).expand(1, 1, len(size), *size)
        inside = (..., *[slice(1, n - 1) for n in size])
        torch.testing.assert_close(
            warp(ramp, on_voxels(ddf))[inside], (ramp + slopes @ shift)[inside], atol=1e-12, rtol=0
        )


def test_a_constant_stays_constant_under_a_shift_of_three_voxels():
    images = torch.full((1, 1, *SIZE), 4.2, dtype=torch.float64)
    shift = on_voxels(torch.full((1, 1, 3, *SIZE), 3.0, dtype=torch.float64))
    torch.testing.assert_close(warp(images, shift), images)


def test_half_precision_fields_are_warped_in_float32():
    size = (320, 4, 4)
    images = voxel_grid(size, torch.empty(0))[:1][None]
    ddf = torch.full((1, 1, 3, *size), 0.5, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        warped = warp(images, on_voxels(ddf))
    assert warped.dtype == torch.float32
    torch.testing.assert_close(warped[0, 0, :-1], images[0, 0, :-1] + 0.5, atol=1e-3, rtol=0)


def test_labels_keep_their_values():
    labels = (noise(1, 1, *SIZE) * 5).round()
    ddf = torch.full((1, 1, 3, *SIZE), 0.3, dtype=torch.float64)
    torch.testing.assert_close(warp(labels, on_voxels(ddf), mode="nearest"), labels)


def test_composition_of_linear_maps_is_their_product():
    a = torch.tensor([[0.05, 0.1, 0.0], [-0.1, 0.02, 0.03], [0.0, 0.04, -0.05]], dtype=torch.float64)
    b = torch.tensor([[-0.04, 0.0, 0.02], [0.03, 0.05, 0.0], [0.0, -0.02, 0.03]], dtype=torch.float64)
    size = (16, 16, 16)
    centre = torch.full((3,), 7.5, dtype=torch.float64)
    outer, inner = linear_field(a, -a @ centre, size), linear_field(b, -b @ centre, size)
    product = a + b + a @ b
    expected = linear_field(product, -product @ centre, size)
    inside = (..., slice(3, -3), slice(3, -3), slice(3, -3))
    torch.testing.assert_close(compose(outer, inner).values[inside], expected.values[inside], atol=1e-10, rtol=0)


def test_one_inner_field_serves_all_timepoints():
    outer, inner = on_voxels(noise(1, 3, 3, *SIZE)), on_voxels(noise(1, 1, 3, *SIZE))
    parts = [compose(outer.timepoints(slice(k, k + 1)), inner) for k in range(3)]
    torch.testing.assert_close(compose(outer, inner).values, torch.cat([part.values for part in parts], dim=1))


def test_fields_on_two_lattices_are_not_mixed():
    """Both lattices have the same shape."""
    one, other = (DisplacementField(torch.zeros(1, 1, 3, 4, 5, 3), Lattice(size, 2)) for size in (SIZE, (8, 9, 6)))
    for mix in (compose, pull_back, lambda a, b: a + b, lambda a, b: a - b):
        with pytest.raises(ValueError, match=r"Lattice.*7, 9, 6.*Lattice.*8, 9, 6|Lattice.*8, 9, 6.*Lattice.*7, 9, 6"):
            mix(one, other)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"ddf: .*\(1, 2, 7, 9, 6\).*\(1, 3, 3, 7, 9, 6\)"):
        warp(torch.zeros(1, 2, *SIZE), on_voxels(torch.zeros(1, 3, 3, *SIZE)))
    for call in (warp, lambda images, ddf: warp_observed(images, None, ddf)):
        with pytest.raises(ValueError, match=r"ddf: .*\(1, 2, 7, 9, 6\).*\(1, 2, 3, 7, 9, 5\)"):
            call(torch.zeros(1, 2, *SIZE), on_voxels(torch.zeros(1, 2, 3, 7, 9, 5)))


def test_moving_out_of_view_has_no_gradient():
    image, ddf = noise(1, 2, *SIZE), (noise(1, 2, 3, *SIZE) - 0.5).requires_grad_()
    values, weight = warp_observed(image, (image > 0.3).double(), on_voxels(ddf))
    assert 0.1 < weight.mean() < 0.9 and not weight.requires_grad and values.requires_grad
    assert not warp_observed(image, None, on_voxels(ddf))[1].requires_grad


def test_labels_of_fields_that_are_trained_keep_their_values_too():
    labels, ddf = (5 * noise(1, 1, *SIZE)).round(), torch.full((1, 1, 3, *SIZE), 0.3).double().requires_grad_()
    assert torch.equal(warp(labels, on_voxels(ddf), mode="nearest"), labels)


def test_the_inverse_by_no_iteration_is_the_opposite_and_more_come_closer():
    x, y, z = voxel_grid((16, 14, 12), torch.empty(0, dtype=torch.float64)) / 3
    ddf = on_voxels(torch.stack([y.sin(), z.sin(), x.sin()])[None, None])
    assert torch.equal(invert(ddf, 0).values, -ddf.values)
    inside = (..., *[slice(3, -3)] * 3)
    left = [compose(ddf, invert(ddf, n)).values[inside].abs().max().item() for n in (0, 4, 8)]
    assert left[0] > 0.1 and left[1] < 0.1 * left[0] and left[2] < 0.1 * left[1]


@pytest.mark.parametrize("shift", [-0.6, -0.25, 0.0, 0.1, 0.4, 0.5])
def test_the_measured_weight_falls_to_0_within_half_a_voxel(shift):
    """The weight is 0 at the outer faces of the volume and halfway to an unobserved voxel."""
    image = torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    observed, ddf = torch.ones_like(image), torch.zeros(1, 1, 3, *SIZE)
    observed[:, :, 3], ddf[:, :, 0] = 0, shift
    values, weight = warp_observed(image, observed, on_voxels(ddf))
    torch.testing.assert_close(values, displace(image, ddf[0]))
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
    ddf = on_voxels(2 * torch.randn(1, 2, 3, *size, generator=generator))
    warped, weight = warp_observed(images, observed, ddf)
    valid, within = weight > 0, inside_volume(ddf)
    torch.testing.assert_close(warped, warp(images, ddf))
    assert torch.equal(valid, within & (warp(observed, ddf) > 0.5)) and valid.any() and not valid.all()
    values, everywhere = warp_observed(images, None, ddf)
    assert torch.equal(values, warped) and torch.equal(everywhere > 0, within)
