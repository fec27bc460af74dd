from argparse import Namespace

import pytest
import torch

from groupmorph_monai.apps.suites import reliability as module
from groupmorph_monai.apps.suites.reliability import inside_share, reliability, standardised_errors


def test_the_nominal_share_of_normal_errors_lies_inside_an_interval():
    errors = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    for level in (0.1, 0.5, 0.9, 0.95):
        assert inside_share(errors, level) == pytest.approx(level, abs=0.01)
        assert inside_share(3 * errors, level) < level - 0.05
    assert inside_share(torch.zeros(3), 0.1) == 1


def exact_case(std, timepoints):
    """Make aligned timepoints, a constant error per field, of mean 0 over K, its inverse, and the predicted
    deviation."""
    rng = torch.Generator().manual_seed(0)
    points = (torch.rand(1, 4000, 3, generator=rng) * 16 + 4).expand(timepoints, -1, -1)
    ddf = torch.randn(timepoints, 3, 1, 1, 1, generator=rng) * 0.2 * torch.ones(24, 24, 24)
    ddf = ddf - ddf.mean(dim=0)
    return points, ddf, -ddf, torch.full_like(ddf, std)


@pytest.mark.parametrize("timepoints", [2, 3, 6])
def test_errors_are_those_about_the_series_mean(timepoints):
    points, ddf, inverse, std = exact_case(0.1, timepoints)
    errors = standardised_errors(points, ddf, inverse, std).view(timepoints, -1, 3)
    torch.testing.assert_close(errors, (ddf[:, None, :, 0, 0, 0] / 0.1).expand_as(errors), atol=1e-3, rtol=0)
    # A shift of all timepoints moves the common space, and is no error.
    shifted = standardised_errors(points, ddf + 0.3, inverse - 0.3, std).view(timepoints, -1, 3)
    torch.testing.assert_close(shifted, errors, atol=1e-3, rtol=0)


class Method:
    def __init__(self, std):
        self.std, self.calls = std, 0

    def parts(self):
        self.calls += 1
        rng = torch.Generator().manual_seed(0)

        def inferer(images, network):
            ddf = 0.2 * torch.randn(images, 3, 24, 24, 24, generator=rng)
            ddf = ddf - ddf.mean(dim=0)
            std = torch.full_like(ddf, self.std * (1 - 1 / images) ** 0.5)
            return {"ddf": ddf[None], "inverse_ddf": torch.zeros_like(ddf)[None], "ddf_std": std[None]}

        return inferer, None, lambda images: images


def test_the_table_tells_who_claims_too_much_and_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    def phantom(seed, size, timepoints, landmarks, noise):
        # On voxels, where nothing is interpolated.
        points = (torch.rand(1, landmarks, 3, generator=torch.Generator().manual_seed(seed)) * 16 + 4).round()
        return {"image": timepoints, "landmarks": points.expand(timepoints, -1, -1)}

    monkeypatch.setattr("groupmorph_monai.data.phantoms.phantom.make_phantom", phantom)
    monkeypatch.setattr(module, "_NEWTON_STEPS", 1)  # white fields have no common point to go to
    methods = {"bold": Method(0.05), "honest": Method(0.2)}
    monkeypatch.setattr(module, "_OVERLAYS", {name: [name] for name in methods})
    monkeypatch.setattr(module, "bundle_method", lambda weights, name, std_draws: methods[name])
    args = Namespace(weights=None, output=tmp_path, seeds=[1, 2])
    rows = reliability(args, (2, 3), (0.02,))
    assert [(row["method"], row["K"], row["cases"]) for row in rows] == [
        ("bold", 2, 2), ("bold", 3, 2), ("honest", 2, 2), ("honest", 3, 2)
    ]  # fmt: skip
    assert all(row["of 90 %"] < 45 for row in rows[:2])
    assert all(row["of 90 %"] == pytest.approx(90, abs=1) for row in rows[2:])
    assert rows[2]["mean standard deviation, voxels"] == pytest.approx(0.2 / 2**0.5)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["reliability.jsonl", "reliability.png"]
    args.seeds = [1, 2, 3]
    again = reliability(args, (2, 3), (0.02,))
    assert methods["bold"].calls == 6 and [row["cases"] for row in again] == [3] * 4


def test_uncertainties_with_and_without_refinement_are_measured_from_20_draws(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(module, "bundle_method", lambda *args, **settings: made.append((*args, settings)))
    assert reliability(Namespace(weights="w.pt", output=tmp_path, seeds=[])) == []
    assert made == [("w.pt", {"std_draws": 20}), ("w.pt", "effort/no_refine", {"std_draws": 20})]
