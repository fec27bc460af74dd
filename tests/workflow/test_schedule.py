import pytest

from groupmorph_monai.workflow import Schedule


def test_a_level_is_left_out_where_its_images_would_be_smaller_than_8_samples():
    schedule = Schedule((16, 8, 4, 2, 1), (5, 4, 3, 2, 1), lattice_voxels=2)
    assert schedule.stages((200, 128, 130))[0] == (16, 5, 16)
    assert schedule.stages((200, 40, 40)) == [(4, 3, 4), (2, 2, 2), (1, 1, 2)]
    assert [stage.least_voxels for stage in schedule.stages((10, 12, 9))] == [8**3, 1]
    with pytest.raises(ValueError, match="one number for each of the levels"):
        Schedule((2, 1), (3,))


@pytest.mark.parametrize("size, steps", [(256, [2, 2]), (257, [4, 4]), (512, [4, 4]), (513, [8, 8]), (8, [2, 2])])
def test_z_has_at_most_128_nodes_along_an_axis(size, steps):
    stages = Schedule((2, 1), (1, 1), lattice_voxels=2).stages((size, 64, 64))
    assert [stage.step for stage in stages] == steps
