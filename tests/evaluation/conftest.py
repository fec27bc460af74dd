import pytest

from groupmorph_monai.data.writing.output_folder import release_all


@pytest.fixture(autouse=True)
def released():
    yield
    release_all()
