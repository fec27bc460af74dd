import pytest
import torch

from groupmorph_monai.benchmarks.reliability import inside_share, reliability, standardised_errors


def test_of_true_normal_errors_as_many_lie_inside_as_stated():
    errors = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    for level in (0.1, 0.5, 0.9, 0.95):
        assert inside_share(errors, level) == pytest.approx(level, abs=0.01)
        assert inside_share(3 * errors, level) < level - 0.05
    assert inside_share(torch.zeros(3), 0.1) == 1


def known(std):
    """Two timepoints that lie alike, and fields that err by noise with a standard deviation of 0.2 a component."""
    rng = torch.Generator().manual_seed(0)
    points = (torch.rand(1, 4000, 3, generator=rng) * 20 + 2).round().expand(2, -1, -1)
    ddf = 0.2 * torch.randn(2, 3, 24, 24, 24, generator=rng)
    ddf[0] = 0  # the first timepoint's voxels are the common space
    return points, ddf, torch.zeros_like(ddf), torch.full_like(ddf, std / 2**0.5)


def test_errors_are_measured_in_what_is_stated_of_both_timepoints():
    errors = standardised_errors(*known(0.2))
    # One direction errs by the second field; the other, from the second timepoint, does not move at all.
    moved, still = errors.view(2, -1)
    assert moved.std().item() == pytest.approx(1, abs=0.03) and still.abs().max() == 0


def test_the_table_and_the_picture_tell_who_claims_too_much(tmp_path):
    class Method:
        def __init__(self, std):
            self.std = std

        def parts(self):
            points, ddf, inverse, std = known(self.std)
            found = {"ddf": ddf[None], "inverse_ddf": inverse[None], "ddf_std": std[None]}
            return lambda images, network: found, None, lambda images: images

    cases = [{"image": None, "landmarks": known(0.2)[0]}]
    honest, bold = reliability(cases, {"honest": Method(0.2), "bold": Method(0.05)}, tmp_path, lambda line: None)
    assert honest["of 90 %"] == pytest.approx(95, abs=1)  # half of the errors are 0
    assert bold["of 90 %"] < 75 and honest["mean standard deviation, voxels"] == pytest.approx(0.1414, rel=1e-3)
    assert [file.name for file in tmp_path.iterdir()] == ["reliability.png"]
