import pytest


@pytest.fixture(autouse=True)
def unseen(no_pictures):
    """These tests do not read the pictures."""
