import torch

from groupmorph_monai.data import make_phantom
from groupmorph_monai.data.storage import Storage
from groupmorph_monai.probability import FluidPrior, LocalCorrelation
from groupmorph_monai.space import Field, MeanAlignment, ScalingAndSquaring
from groupmorph_monai.workflow import Refinement
from groupmorph_monai.workflow.evidence import Evidence

FLOW, ALIGNMENT = ScalingAndSquaring(3, midpoint=True), MeanAlignment(remove_mean=True)


def refined(storage, images, evidence, hypotheses=()):
    def displacement(z):
        shared = ALIGNMENT.shared(z, storage.chunks)
        return storage.map(lambda part: FLOW(part - shared), z)

    refinement = Refinement(
        LocalCorrelation((1, 2)), FluidPrior(0, 0, 0, 60), iterations=(0, 0, 3, 3, 3), storage=storage
    )
    size = images.shape[2:]
    z = Field(torch.zeros(1, images.shape[1], 3, *[-(-n // 4) for n in size]), size, 4)
    return refinement(z, images, displacement, evidence, hypotheses)


def test_a_few_scans_at_a_time_are_refined_as_all_at_once(tmp_path):
    x = make_phantom(4, size=(36, 32, 28), timepoints=8, max_motion_voxels=2)["image"]
    x = (x / x.quantile(0.99)).clamp(0, 1)[None]
    seen = torch.ones_like(x)
    seen[:, 2, :6], seen[:, 5, :, 28:] = 0, 0
    mask = torch.ones_like(x[:, :1])
    mask[:, :, :, :3] = 0
    for evidence in (Evidence(seen), Evidence(seen, mask), Evidence(None, mask.expand_as(x).contiguous())):
        whole = refined(Storage(), x, evidence)
        parts = refined(Storage(3, tmp_path), x, evidence)
        assert whole.values.abs().max() > 0.5
        torch.testing.assert_close(parts.values, whole.values, atol=1e-4, rtol=0)
