import pytest

from groupmorph_monai.data import make_phantom


@pytest.fixture(scope="session")
def phantom():
    return make_phantom(4, size=(44, 40, 36), timepoints=4, max_motion_voxels=3, landmarks=300)
