import pytest

from groupmorph_monai.workflow import Schedule


def test_a_level_is_left_out_where_its_images_would_be_smaller_than_8_samples():
    schedule = Schedule((16, 8, 4, 2, 1), (5, 4, 3, 2, 1), lattice_voxels=2)
    assert schedule.stages((200, 128, 130))[0] == (16, 5, 16)
    assert schedule.stages((200, 40, 40)) == [(4, 3, 4), (2, 2, 2), (1, 1, 2)]
    assert [stage.least_voxels for stage in schedule.stages((10, 12, 9))] == [8**3, 1]
    with pytest.raises(ValueError, match="one number for each of the levels"):
        Schedule((2, 1), (3,))
