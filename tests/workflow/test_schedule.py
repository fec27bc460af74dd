import pytest
import torch
from refinements import displacement, images, refinement, start

from groupmorph_monai.data.storage import Storage
from groupmorph_monai.workflow import Refinement, Schedule


def test_a_level_is_left_out_where_its_images_would_be_smaller_than_8_samples():
    schedule = Schedule((16, 8, 4, 2, 1), (5, 4, 3, 2, 1), lattice_voxels=2)
    assert schedule.stages((200, 128, 130))[0] == (16, 5, 16)
    assert schedule.stages((200, 40, 40)) == [(4, 3, 4), (2, 2, 2), (1, 1, 2)]
    assert [stage.least_voxels for stage in schedule.stages((10, 12, 9))] == [8**3, 1]
    with pytest.raises(ValueError, match="one number for each of the levels"):
        Schedule((2, 1), (3,))


@pytest.mark.parametrize(
    "size, levels, lattice, steps",
    [
        (256, (4, 2, 1), 2, [4, 2, 2]),
        (257, (4, 2, 1), 2, [4, 4, 4]),
        (1100, (4, 2, 1), 1, [4, 4, 4]),
        (371, (12, 6, 3, 1), 2, [12, 6, 6, 4]),
        (64, (4, 2, 1), 3, [4, 4, 3]),
    ],
)
def test_z_is_coarser_on_large_images_and_on_whole_voxels_of_a_level(size, levels, lattice, steps):
    stages = Schedule(levels, [1] * len(levels), lattice_voxels=lattice).stages((size, 128, 128))
    assert [stage.step for stage in stages] == steps


def test_a_large_series_is_refined_on_every_4th_voxel(phantom, monkeypatch):
    monkeypatch.setattr("groupmorph_monai.workflow.schedule._LARGE_VOXELS", 16)
    ask, x = refinement(), images(phantom)
    z = ask(start(phantom), x, displacement)
    in_parts = Refinement(ask.likelihood, ask.prior, ask.schedule, ask.prior_weights, ask.static_regions, Storage(1))
    streamed = in_parts(start(phantom), x, displacement)
    assert z.lattice.step == 4 and next(ask.draws(z, x, displacement, number=1)).lattice == z.lattice
    torch.testing.assert_close(streamed.values, z.values, rtol=0, atol=1e-3)
