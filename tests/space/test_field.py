"""Fields on lattices of every size: constants and ramps in closed form."""

import pytest
import torch

from groupmorph_monai.space import DisplacementField, Grid, Lattice, VelocityField, voxel_grid

STEPS = (1, 2, 4, 8, 16)
# Sizes whose lattice does not determine the step: other sizes and steps give the same ceil(size / step).
AMBIGUOUS = (9, *range(129, 136), *range(145, 151), *range(161, 166), *range(177, 181), 193, 194, 195, 209, 210, 225)


def shape(size, step):
    return tuple(-(-n // step) for n in size)


def constant(size, step):
    """Make a displacement of 8, -16 and 4 voxels of the image, which is exact in the units of all steps."""
    values = torch.tensor([8.0, -16.0, 4.0], dtype=torch.float64).view(1, 1, 3, 1, 1, 1) / step
    return DisplacementField(values.expand(1, 1, 3, *shape(size, step)), Lattice(size, step))


def ramp(size, step):
    """Make a field whose components are the image voxel's indices, in voxels of the lattice."""
    values = voxel_grid(shape(size, step), torch.empty(0, dtype=torch.float64))[None, None]
    return DisplacementField(values, Lattice(size, step))


def check_every_step(size, steps=STEPS):
    both = {step: torch.cat([f(size, step).values for f in (constant, ramp)], dim=1) for step in steps}
    for step in steps:
        for other in steps:
            actual = DisplacementField(both[step], Lattice(size, step)).at(other)
            assert actual.lattice == Lattice(size, other) and actual.values.shape == (1, 2, 3, *shape(size, other))
            assert (actual.values - both[other])[:, 0].abs().max() < 1e-12
            if other > step:
                continue
            # Interpolation reproduces a ramp up to the lattice's last voxel, and repeats its value beyond.
            last = torch.tensor([step * (n - 1) / other for n in shape(size, step)], dtype=torch.float64)
            expected = both[other][0, 1].minimum(last.view(3, 1, 1, 1))
            assert (actual.values[0, 1] - expected).abs().max() < 1e-10


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sizes", [range(a, a + 32) for a in range(4, 260, 32)] + [[260]], ids=lambda r: f"{r[0]} on")
def test_every_size_along_each_axis_changes_between_all_steps(axis, sizes):
    for n in sizes:
        size = [5, 4, 5]
        size[axis] = n
        check_every_step(tuple(size))


@pytest.mark.parametrize("n", AMBIGUOUS)
def test_sizes_whose_lattices_are_those_of_other_steps_too(n):
    check_every_step((n, n, n), steps=(4, 8, 16))


def test_a_cube_of_150_voxels_and_one_of_9():
    for n in (9, 150):
        for step in STEPS[1:]:
            field = constant((n, n, n), step)
            assert field.at(8).values.shape[3:] == shape((n, n, n), 8)
            assert constant((n, n, n), 8).at(step).values.shape == field.values.shape


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step, other", [(1, 2), (1, 4), (2, 8), (4, 16), (1, 16)])
def test_a_thinned_ramp_lies_on_every_step_th_voxel(step, other, axis):
    """Smoothing preserves a ramp away from its ends, which reveals a lattice that is off by one voxel."""
    for n in (150, 135, 161):
        size = [5, 4, 5]
        size[axis] = n
        thinned, expected = (field.values[0, 0, axis] for field in (ramp(size, step).at(other), ramp(size, other)))
        along = slice(3, -4)  # voxels of the new lattice: the Gaussian reaches one and a half, the last one too
        actual = thinned.movedim(axis, 0)[along]
        torch.testing.assert_close(actual, expected.movedim(axis, 0)[along], rtol=0, atol=1e-9)
        assert len(actual) > 1


def test_steps_that_do_not_divide_one_another_meet_on_the_common_one():
    size = (30, 25, 31)
    expected = ramp(size, 6).at(2).at(4)
    torch.testing.assert_close(ramp(size, 6).at(4).values, expected.values, rtol=0, atol=0)
    inside = (0, 0, slice(None), *[slice(2, -3)] * 3)
    torch.testing.assert_close(expected.values[inside], ramp(size, 4).values[inside], rtol=0, atol=1e-9)
    torch.testing.assert_close(constant(size, 6).at(4).values, constant(size, 4).values)


@pytest.mark.parametrize("kind", [VelocityField, DisplacementField])
def test_kind_and_lattice_stay(kind):
    field = kind(ramp((9, 12, 7), 2).values, Lattice((9, 12, 7), 2))
    assert field.at(2) is field
    for other in (field.with_values(3 * field.values), field - (-field) / 0.5):
        assert type(other) is kind and other.lattice == field.lattice
        torch.testing.assert_close(other.values, 3 * field.values)
    assert all(type(field.at(step)) is kind for step in (1, 4, 3))


def test_half_precision_is_widened():
    """A displacement of 100.3 voxels is off by 0.3 in bfloat16."""
    for narrow, wide in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64,) * 2):
        assert DisplacementField.on_voxels(torch.zeros(1, 1, 3, 2, 2, 2, dtype=narrow)).values.dtype == wide


def test_displacements_have_a_component_for_each_axis():
    for shape in ((1, 2, 9, 5, 5, 5), (1, 2, 2, 5, 5, 5), (1, 2, 3, 5, 5), (2, 3, 9, 7, 6)):
        with pytest.raises(ValueError, match="values: expected displacements with"):
            DisplacementField.on_voxels(torch.zeros(shape))
    assert VelocityField.on_voxels(torch.zeros(1, 2, 9, 5, 5, 5)).timepoint_count == 2
    assert DisplacementField.on_voxels(torch.zeros(1, 2, 2, 5, 5)).lattice == Lattice([5, 5])


@pytest.mark.parametrize("step", [0, -2])
def test_a_lattice_has_a_positive_step(step):
    with pytest.raises(ValueError, match=f"step: expected 1 or more, got {step}"):
        Lattice((4, 5, 6), step)


@pytest.mark.parametrize("step", [1, 2, 4])
def test_the_lattice_lies_on_the_voxels_of_the_image(step):
    image = Grid((9, 12, 7), torch.tensor([[0, -2.1, 0, 5], [1.7, 0, 0, -20], [0, 0, 3, 0.1], [0, 0, 0, 1]]).double())
    lattice = Lattice(image.shape, step)
    assert torch.equal(lattice.grid(image.affine).points(), image.points()[::step, ::step, ::step])
    covering = lattice.covering().grid(image.affine)
    assert covering.contains(image.points()).all() and covering.shape == tuple(
        -(-(n - 1) // step) + 1 for n in image.shape
    )


@pytest.mark.parametrize("n", AMBIGUOUS)
def test_values_that_lie_on_another_lattice_are_refused(n):
    """Examples: a step of 16 instead of 8, and a size that is off by one voxel of the lattice."""
    right = shape((n, n, n), 8)
    DisplacementField(torch.zeros(1, 1, 3, *right), Lattice((n, n, n), 8))
    for wrong in (shape((n, n, n), 16), shape((n, n, n), 4), (right[0], right[1], right[2] + 1)):
        with pytest.raises(ValueError, match=r"values: expected spatial shape"):
            DisplacementField(torch.zeros(1, 1, 3, *wrong), Lattice((n, n, n), 8))


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("every", [2, 3])
def test_every_nth_voxel_of_the_image_has_the_value_that_it_has_among_all(step, every):
    size = (13, 9, 10)
    values = torch.rand(1, 2, 3, *shape(size, step), generator=torch.Generator().manual_seed(0))
    field = DisplacementField(values, Lattice(size, step))
    torch.testing.assert_close(field.on_image(every), field.on_image()[..., ::every, ::every, ::every])
