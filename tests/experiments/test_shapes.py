import pytest
import torch

from experiments.shapes import make_shapes, shapes


def test_shapes_are_a_disk_and_an_open_ring_of_the_papers_sizes():
    for seed in range(5):
        disk, c = make_shapes(seed, 120)[0] > 0.5
        assert 24 <= (disk.sum() / torch.pi).sqrt() <= 40
        assert c[60].any() and not c[60, 60] and disk[60, 60]
        # The ring's opening points down the first axis alone.
        assert not c[60:, 60].any() and c[:60, 60].any() and c[60, :60].any() and c[60, 60:].any()


def test_a_c_becomes_a_disk_without_folds_and_goes_back(tmp_path):
    (row,) = shapes([4], tmp_path, progress=lambda line: None)
    assert row["Dice"] > 0.95 > row["Dice before"] + 0.2
    assert row["folds, %"] == row["folded area, %"] == 0
    assert row["greatest displacement, voxels"] > 15 and row["greatest inversion error, voxels"] < 0.6
    assert row["mean inversion error, voxels"] == pytest.approx(0.03, abs=0.03)
    assert [file.name for file in tmp_path.iterdir()] == ["shapes.png"]
