import numpy as np
import pytest
import torch

from groupmorph_monai.data import header_grids, make_phantom, read_series
from groupmorph_monai.data.storage import Storage
from groupmorph_monai.data.writing.nifti import nifti_image, save_nifti
from groupmorph_monai.errors import InputError
from groupmorph_monai.networks import GroupSetVAE, GroupVAE
from groupmorph_monai.probability import FluidPrior, GroupNMI, LocalCorrelation
from groupmorph_monai.space import (
    DisplacementField,
    GeodesicMeanAlignment,
    Lattice,
    MeanAlignment,
    MidpointSquaring,
    OneWayAlignment,
    ReferenceAlignment,
    ScalingAndSquaring,
    VelocityField,
)
from groupmorph_monai.space.filters import gaussian_filter
from groupmorph_monai.workflow import (
    LikeliestWeights,
    NetworkPasses,
    Refinement,
    RegistrationInferer,
    Schedule,
    many_scans,
    storage_for,
)
from groupmorph_monai.workflow.evidence import Evidence

FLOW, ALIGNMENT = MidpointSquaring(3), GeodesicMeanAlignment()


def refined(storage, images, evidence, hypotheses=()):
    def displacement(z):
        shared = ALIGNMENT.shared(z, storage.chunks)
        values = storage.map(lambda part: FLOW(z.with_values(part) - shared).values, z.values)
        return DisplacementField(values, z.lattice)

    refinement = Refinement(
        LocalCorrelation((1, 2)),
        FluidPrior(0, 0, 0, 60),
        Schedule(iterations=(0, 0, 0, 2, 2)),
        LikeliestWeights(),
        storage=storage,
    )
    lattice = Lattice(images.shape[2:], 4)
    z = VelocityField(torch.zeros(1, images.shape[1], 3, *lattice.shape), lattice)
    return refinement(z, images, displacement, evidence, hypotheses)


def test_a_few_scans_at_a_time_are_refined_as_all_at_once(tmp_path):
    x = make_phantom(4, size=(28, 26, 24), timepoints=7, max_motion_voxels=2)["image"]
    x = (x / x.quantile(0.99)).clamp(0, 1)[None]
    covered = torch.ones_like(x)
    covered[:, 2, :6], covered[:, 5, :, 20:] = 0, 0
    mask = torch.ones_like(x[:, :1])
    mask[:, :, :, :3] = 0
    for evidence in (Evidence(covered, mask), Evidence(None, mask.expand_as(x).contiguous())):
        whole = refined(Storage(), x, evidence)
        parts = refined(Storage(3, tmp_path), x, evidence)
        assert whole.values.abs().max() > 0.5
        torch.testing.assert_close(parts.values, whole.values, atol=1e-4, rtol=0)


def test_maps_do_not_depend_on_how_many_are_made_at_a_time(tmp_path):
    z = VelocityField.on_voxels(torch.randn(1, 5, 3, 6, 5, 4, generator=torch.Generator().manual_seed(0)) / 4)
    for alignment in (ALIGNMENT, MeanAlignment(), ReferenceAlignment(1), ReferenceAlignment(4), OneWayAlignment(3)):
        for maps, whole in (
            (alignment.displacements, alignment(z, FLOW)),
            (alignment.inverses, alignment.inverse(z, FLOW)),
        ):
            parts = torch.cat([part.values for _, part in maps(z, FLOW, Storage(2, tmp_path).chunks)], dim=1)
            torch.testing.assert_close(parts, whole.values, atol=1e-6, rtol=0)
        centred = alignment.centred(z)
        expected = alignment.constrain(alignment.anchored(centred))
        without = centred - alignment.shared(centred)
        torch.testing.assert_close(without.values, expected.values, atol=1e-6, rtol=0)


def test_parts_that_need_all_scans_at_once_are_refused_in_one_line(tmp_path):
    storage, flow = Storage(2, tmp_path), ScalingAndSquaring(2)
    prior, x = FluidPrior(0, 0, 0, 60), torch.rand(1, 4, 8, 8, 8)
    with pytest.raises(InputError, match="scans_at_once: expected null with GroupNMI.*got 2.*default likelihood"):
        z = VelocityField(torch.zeros(1, 4, 3, 4, 4, 4), Lattice((8, 8, 8), 2))
        Refinement(GroupNMI(), prior, storage=storage)(z, x, flow)
    with pytest.raises(InputError, match="scans_at_once: expected null with draws.*got 2"):
        refinement = Refinement(LocalCorrelation(), prior, storage=storage)
        RegistrationInferer(ALIGNMENT, flow, refinement=refinement, draws=2, storage=storage)
    with pytest.raises(InputError, match="scans_at_once: expected null with more than one pass.*got 2"):
        RegistrationInferer(ALIGNMENT, flow, passes=NetworkPasses(2), storage=storage)
    with pytest.raises(InputError, match="scans_at_once: expected null with GroupVAE and without a refin.*got 2"):
        network = GroupVAE(4, encoder_channels=(4,), decoder_channels=())
        RegistrationInferer(ALIGNMENT, flow, storage=storage)(x, network)
    with pytest.raises(InputError, match="scans_at_once: expected auto or null on cuda, got 2; add --device cpu"):
        storage_for([], 2, device="cuda")


def test_the_network_predicts_what_it_does_of_all_at_once(tmp_path):
    torch.manual_seed(0)
    network = GroupSetVAE((4, 6, 6, 6), (2, 3, 3, 3), 6).eval()
    for update in network.look:  # as if it were trained: steps that are not all alike
        torch.nn.init.normal_(update.head.weight, std=0.05)
    x = gaussian_filter(torch.rand(1, 5, 36, 33, 40, generator=torch.Generator().manual_seed(1)), 1.0)
    covered = torch.ones_like(x)
    covered[:, 3, :9] = 0
    whole, parts = (
        RegistrationInferer(ALIGNMENT, FLOW, storage=storage)(x, network, coverage=covered)
        for storage in (Storage(), Storage(2, tmp_path))
    )
    assert whole["dvf"].abs().max() > 0.5
    # Random weights turn rounding into steps that differ a little.
    for name, atol in (("dvf", 1e-3), ("ddf", 0.01), ("inverse_ddf", 0.01), ("warped", 0.01)):
        torch.testing.assert_close(parts[name], whole[name], atol=atol, rtol=0)


@pytest.mark.parametrize("four_d", [False, True])
def test_only_series_that_do_not_fit_are_taken_in_parts(four_d, tmp_path, monkeypatch):
    files = [tmp_path / f"t{k}.nii.gz" for k in range(4)]
    volumes = np.random.default_rng(0).random((20, 20, 20, 4), dtype=np.float32)
    if four_d:
        files = [tmp_path / "series.nii.gz"]
        save_nifti(nifti_image(volumes, np.eye(4)), files[0])
    else:
        for k, file in enumerate(files):
            save_nifti(nifti_image(volumes[..., k], np.eye(4)), file)
    scans, network = header_grids([str(file) for file in files]), GroupSetVAE((4, 6, 6, 6), (2, 3, 3, 3), 6)
    monkeypatch.setattr(many_scans, "all_at_once_gb", lambda scans, grid, step: 0.1 * len(scans) + 0.3)
    monkeypatch.setattr(many_scans, "streamed_gb", lambda scans, grid, number: 0.4 + 0.05 * number)
    monkeypatch.setattr(many_scans, "available_memory_gb", lambda: 0.71)
    assert storage_for(scans).scans_at_once is None
    monkeypatch.setattr(many_scans, "available_memory_gb", lambda: 0.69)
    storage = storage_for(scans, folder=tmp_path / "out", needs=[LocalCorrelation(), network, 0, 0])
    assert storage.scans_at_once == 2
    for needs in ([GroupNMI()], [LocalCorrelation(), GroupVAE(4)], [2], [0, 1]):
        assert storage_for(scans, needs=needs).scans_at_once is None
    assert storage_for(scans, device="cuda").scans_at_once is None
    assert storage_for(scans, scans_at_once=None).scans_at_once is None
    monkeypatch.setattr(many_scans, "streamed_gb", lambda scans, grid, number: 0.7 + 0.05 * number)
    assert storage_for(scans).scans_at_once is None  # parts would need more than the whole
    monkeypatch.setattr(many_scans, "streamed_gb", lambda scans, grid, number: 0.4 + 0.05 * number)
    monkeypatch.setattr(many_scans, "all_at_once_gb", lambda scans, grid, step: 0.8 if step == 1 else 0.6)
    assert storage_for(scans).scans_at_once is None
    assert storage_for(scans, schedule=Schedule(lattice_voxels=1)).scans_at_once == 2
    assert storage_for(scans, schedule=Schedule((16,), (8,))).scans_at_once is None  # no level on so few voxels
    parts, whole = read_series(files, storage=storage), read_series(files)
    for one, other, k in zip(parts.frames, whole.frames, range(4)):
        assert np.array_equal(one.data, other.data) and np.array_equal(one.data, volumes[..., k])
