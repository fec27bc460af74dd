import pytest
import torch

from experiments.symmetry import asymmetry


class Shift:
    """Network that shifts the second image along i in proportion to the intensity of the first."""

    def prepare(self):
        def register(images):
            ddf = torch.zeros(2, 3, *images.shape[1:])
            ddf[1, 0] = images[0].mean()
            return ddf, -ddf

        return register


def test_it_is_the_distance_from_where_one_began_in_either_order():
    pair = torch.stack([torch.full((12, 10, 8), 1.5), torch.full((12, 10, 8), -0.5)])
    (row,) = asymmetry([{"image": pair}, {"image": pair.flip(0)}], {"shift": Shift()})
    assert row == {"method": "shift", "composition of both orders, voxels": pytest.approx(1.0)}
