import numpy as np
import torch

from experiments import codes as module
from experiments.codes import codes, predict_classes
from groupmorph_monai.data import HEART_MOTIONS, make_heart


def test_classes_are_predicted_from_discriminative_components_only():
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(5), 20)
    noise = rng.standard_normal((100, 8))
    shifted = noise + 3 * rng.standard_normal((5, 8))[classes]
    assert (predict_classes(shifted, classes) == classes).mean() > 0.9
    # The classifier does not see the held-out fold: for noise, a fifth is correct by chance.
    assert (predict_classes(noise, classes) == classes).mean() < 0.4


class Oracle:
    """Network that knows the true motion of the hearts made last; its codes are the kind of motion."""

    alignment = transformation = None

    def __init__(self, transports=False):
        self.transports = transports

    def __call__(self, images, made):
        heart, wanted = made[-2:]
        ddf, inverse = torch.zeros(2, 1, 2, *heart["motion"].shape)
        inverse[0, 1] = (wanted if self.transports else heart)["motion"]
        codes = torch.eye(len(HEART_MOTIONS))[heart["number"]].expand(1, 2, -1)
        noise = torch.randn(codes.shape, generator=torch.Generator().manual_seed(len(made)))
        return {"ddf": ddf, "inverse_ddf": inverse, "z_mean": codes + 0.05 * noise}


def test_a_perfect_model_leaves_nothing_and_tells_every_kind(monkeypatch, tmp_path):
    made, kinds = [], list(HEART_MOTIONS)

    def make(seed, kind, **options):
        made.append({**make_heart(seed, kind, **options), "number": kinds.index(kind)})
        return made[-1]

    class Method:
        def parts(self):
            return Oracle(), made, lambda images: images[None]

    monkeypatch.setattr(module, "make_heart", make)
    monkeypatch.setattr(module, "CodeInferer", lambda alignment, transformation, codes: Oracle(transports=True))
    rows = codes(Method(), range(10), tmp_path, size=(16, 16, 12), progress=lambda line: None)
    assert [row["motion"] for row in rows] == [*kinds, "all"]
    for row in rows:
        assert row["registered, voxels"] == row["transported, voxels"] == 0 < row["motion to transport, voxels"]
        assert row["classified correctly, %"] == 100
    assert (tmp_path / "codes.png").stat().st_size > 1000
