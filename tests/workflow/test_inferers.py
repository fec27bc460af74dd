import pytest
import torch

from groupmorph_monai.data import make_phantom
from groupmorph_monai.errors import InputError
from groupmorph_monai.evaluation.metrics import landmark_distances_mm
from groupmorph_monai.networks import AffineNet, GroupSetVAE, GroupVAE, KrebsCVAE, MomentumNet
from groupmorph_monai.probability import FluidPrior, GroupNMI, LocalCorrelation, Posterior
from groupmorph_monai.space import (
    Displacement,
    DisplacementField,
    FlowSequence,
    GeodesicMeanAlignment,
    Lattice,
    MeanAlignment,
    OneWayAlignment,
    ReferenceAlignment,
    ScalingAndSquaring,
    warp,
)
from groupmorph_monai.workflow import (
    LikeliestWeights,
    NetworkPasses,
    Refinement,
    RegistrationInferer,
    Schedule,
    TrainingInferer,
    prepare_series,
    timepoint_transforms,
)


class LocalNetwork(torch.nn.Module):
    """Network whose z is a pointwise function of every second voxel, so that windows cannot change it, with a given
    variance."""

    multiple, stride = 4, 2

    def __init__(self, std=0.1):
        super().__init__()
        self.log_variance = 2 * torch.log(torch.tensor(std))

    def forward(self, images):
        mean = images[..., ::2, ::2, ::2].repeat_interleave(3, dim=1) - 0.5
        return torch.cat([mean, self.log_variance.expand_as(mean)], dim=1)

    def decode(self, z, images):
        return z


def images(size=(24, 20, 22), timepoints=2):
    coarse = torch.rand(1, timepoints, 5, 5, 5, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=size, mode="trilinear")


def inferer(**options):
    return RegistrationInferer(options.pop("alignment", MeanAlignment()), ScalingAndSquaring(4), **options)


def test_windows_equal_the_whole_volume():
    net, x = LocalNetwork().eval(), images((26, 21, 23))
    whole = inferer()(x, net)
    windowed = inferer(passes=NetworkPasses(window_voxels=(12, 12, 40)))(x, net)
    for name in ("warped", "ddf", "inverse_ddf", "z_mean"):
        torch.testing.assert_close(windowed[name], whole[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_refused_in_one_line(bad):
    x = images()
    x[0, 1, 3, 4, 5] = bad
    with pytest.raises(InputError, match="images: expected finite intensities"):
        inferer()(x, LocalNetwork().eval())


def test_the_displacement_is_in_voxels_of_the_images():
    class Shift(LocalNetwork):
        def forward(self, images):
            mean = torch.zeros_like(super().forward(images)[:, :6])
            mean[:, 0] = 1  # one voxel of the coarse grid is two of the images'
            return torch.cat([mean, mean], dim=1)

    result = inferer()(images(), Shift().eval())
    torch.testing.assert_close(result["ddf"][0, 0, 0], torch.full((24, 20, 22), 2.0))
    torch.testing.assert_close(result["inverse_ddf"][0, 0, 0], torch.full((24, 20, 22), -2.0))
    torch.testing.assert_close(result["warped"][:, 0, :-2], images()[:, 0, 2:], atol=1e-5, rtol=0)
    assert result["ddf"][0, 1].abs().max() == 0


def test_velocities_of_several_pieces_need_a_sequence():
    """A network for three velocities, whose flows are composed, was read as one velocity with nine components."""

    class Pieces(LocalNetwork):
        def forward(self, images):
            zeros = torch.zeros_like(super().forward(images)[:, :6])
            return torch.cat([zeros] * 6, dim=1)

    with pytest.raises(ValueError, match="3 components, got 9"):
        inferer()(images(), Pieces().eval())


def test_the_result_agrees_with_itself():
    result = inferer(alignment=ReferenceAlignment(1))(images(), LocalNetwork().eval())
    torch.testing.assert_close(result["warped"], warp(images(), DisplacementField.on_voxels(result["ddf"])))
    torch.testing.assert_close(result["warped"][:, 1], images()[:, 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("alignment", [MeanAlignment(), ReferenceAlignment(1)])
def test_fields_without_warped_images_are_those_of_the_registration(alignment):
    result, fields = (
        call(images(), LocalNetwork().eval())
        for call in (inferer(alignment=alignment), inferer(alignment=alignment).fields)
    )
    for name in ("ddf", "inverse_ddf"):
        field = DisplacementField(fields[f"lattice_{name}"], Lattice((24, 20, 22), fields["step"]))
        torch.testing.assert_close(field.on_image(), result[name])
        assert fields["step"] == 2 and result[name].std() > 0.1
    assert result.keys() - fields.keys() == {"warped", "covered", "ddf", "inverse_ddf"}


def small_group_vae():
    return GroupVAE(2, encoder_channels=(8, 16, 16), decoder_channels=(16,))


@pytest.mark.parametrize("make", [AffineNet, GroupSetVAE, small_group_vae, KrebsCVAE, MomentumNet])
@pytest.mark.parametrize("training", [False, True])
def test_convolutions_in_bf16_leave_geometry_in_float32(make, training):
    torch.manual_seed(0)
    net, dtypes = make().train(training), set()
    for module in net.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_hook(lambda *call: dtypes.add(call[2].dtype))

    class Checked(ScalingAndSquaring):
        def __call__(self, z):
            assert z.values.dtype == torch.float32
            return super().__call__(z)

    results = []
    for bf16 in (True, False):
        torch.manual_seed(1)
        ask = RegistrationInferer(MeanAlignment(), Checked(2), passes=NetworkPasses(bf16=bf16))
        ask = TrainingInferer(ask) if training else ask
        with torch.set_grad_enabled(training):
            results.append(ask(images((32, 32, 32)), net))
        assert (torch.bfloat16 in dtypes) == bf16
        dtypes.clear()
    for name in ("warped", "ddf", "dvf", "z_mean", "z_log_variance"):
        lower, full = (x[name] for x in results)
        assert lower.dtype == torch.float32
        if name != "warped":
            finite = full.isfinite()
            torch.testing.assert_close(lower[~finite], full[~finite])
            assert (lower - full)[finite].norm() <= 0.05 * full[finite].norm(), name
    if training:
        results[0]["warped"].sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in net.parameters() if p.grad is not None)


def test_the_mean_and_spread_of_draws_are_the_posteriors():
    decoded = []

    class Recorder(LocalNetwork):
        def decode(self, z, images):
            decoded.append(z)
            return z

    ask = RegistrationInferer(MeanAlignment(), Displacement(), draws=400)
    result = ask(images((8, 8, 8)), Recorder(std=0.1).eval())
    mean = torch.stack(decoded[-400:]).mean(dim=0)
    torch.testing.assert_close(mean, result["z_mean"], atol=0.03, rtol=0)
    # The standard deviation in voxels of the images is twice that of z, in voxels of its lattice.
    spread = result["ddf_std"][..., ::2, ::2, ::2]
    torch.testing.assert_close(spread.mean(), torch.tensor(0.2), atol=5e-3, rtol=0)
    again = ask(images((8, 8, 8)), LocalNetwork(std=0.1).eval())
    torch.testing.assert_close(again["ddf_std"], result["ddf_std"], atol=0, rtol=0)
    ask = RegistrationInferer(MeanAlignment(), Displacement(), draws=400, posterior=Posterior().scaled(2.0))
    wider = ask(images((8, 8, 8)), LocalNetwork(std=0.1).eval())
    torch.testing.assert_close(wider["ddf_std"], 2 * result["ddf_std"])


def test_draws_of_a_network_that_is_not_calibrated_are_refused():
    posterior = Posterior().scaled(None)
    RegistrationInferer(MeanAlignment(), Displacement(), posterior=posterior)
    with pytest.raises(InputError, match=r"std_draws .* not calibrated .*, got 4; .* --set network_std_factor=1"):
        RegistrationInferer(MeanAlignment(), Displacement(), draws=4, posterior=posterior)


def test_a_second_pass_sees_what_the_first_left():
    class Half(LocalNetwork):
        """Network that moves timepoint 0 by half the distance between the bright planes of both volumes."""

        def forward(self, images):
            profile = images.mean(dim=(3, 4))
            place = (profile * torch.arange(images.shape[2])).sum(2) / profile.sum(2)
            mean = torch.zeros(1, 6, *[n // 2 for n in images.shape[2:]])
            mean[:, 0] = 0.5 * (place[0, 0] - place[0, 1]) / 2
            return torch.cat([mean, mean], dim=1)

    x = torch.zeros(1, 2, 32, 8, 8)
    x[:, 0, 16:20], x[:, 1, 12:16] = 1, 1
    for passes, expected in ((1, 2.0), (2, 3.0), (3, 3.5)):
        ddf = inferer(passes=NetworkPasses(passes))(x, Half().eval())["ddf"]
        assert ddf[0, 0, 0].mean().item() == pytest.approx(expected, abs=0.05)


def test_each_pass_decodes_with_the_images_that_it_encoded():
    encoded, decoded = [], []

    class Recorder(LocalNetwork):
        def forward(self, images):
            encoded.append(images)
            return super().forward(images)

        def decode(self, z, images):
            decoded.append(images)
            return z

    inferer(passes=NetworkPasses(2))(images(), Recorder().eval())
    torch.testing.assert_close(decoded, encoded, atol=0, rtol=0)
    assert not torch.equal(*decoded)


def test_refinement_leaves_the_weights():
    torch.manual_seed(0)
    net = GroupVAE(2, encoder_channels=(4, 6), decoder_channels=()).eval()
    fixed = images((36, 32, 32), timepoints=1)
    x = torch.cat([fixed, 0.5 * fixed.roll(2, dims=2) + 0.2], dim=1)[:, :, 3:-3]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    refinement = Refinement(LocalCorrelation(), FluidPrior(0, 0, 0, 60), prior_weights=LikeliestWeights())
    result = inferer(refinement=refinement)(x, net)
    shift = (result["ddf"][0, 1, 0] - result["ddf"][0, 0, 0])[4:-4, 4:-4, 4:-4].mean()
    assert shift.item() == pytest.approx(2, abs=0.1)  # a volume rolled by 2 is shifted by 2 voxels
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_all_voxels_count_in_a_refinement():
    x, schedule = images((32, 32, 32)), Schedule((4, 2), (2, 2))
    quarter, whole = (
        inferer(refinement=Refinement(GroupNMI(voxel_fraction=share), FluidPrior(0, 0, 0, 60), schedule))
        for share in (0.25, 1)
    )
    dvf = quarter(x, Nothing().eval())["dvf"]
    assert dvf.abs().max() > 1e-3 and torch.equal(dvf, whole(x, Nothing().eval())["dvf"])


def test_a_mask_is_that_of_the_reference():
    calls = []

    def refinement(z, images, displacement, evidence, hypotheses):
        calls.append((evidence.mask_timepoint, evidence.mask))
        return z

    x = images(timepoints=3)
    mask = torch.rand(1, 1, *x.shape[2:])
    for alignment in (MeanAlignment(), ReferenceAlignment(0), ReferenceAlignment(2)):
        inferer(alignment=alignment, refinement=refinement)(x, LocalNetwork().eval(), mask=mask)
    assert [home for home, _ in calls] == [0, 0, 2] and all(own_mask is mask for _, own_mask in calls)


def test_the_refinement_knows_the_positions_before_the_initial_maps():
    calls = []

    def refinement(z, images, displacement, mask, static_hypotheses):
        calls.append(static_hypotheses)
        return z

    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 1, :3, 3] = torch.tensor([4.0, 0.0, -2.0])  # a translation's logarithm
    ask = inferer(alignment=GeodesicMeanAlignment(), refinement=refinement)
    x = images()
    ask(x, LocalNetwork().eval(), initial=maps)
    ask(x, LocalNetwork().eval())
    ask(x, LocalNetwork().eval(), initial=maps, one_header=False)
    for hypotheses in calls[1:]:
        assert [field.values.abs().max() for field in hypotheses] == [0]
    # Half of the map each way, backwards, in voxels of every second voxel.
    expected = torch.tensor([1.0, 0.0, -0.5]).view(3, 1, 1, 1).expand(3, 12, 10, 11)
    torch.testing.assert_close(calls[0][-1].values[0], torch.stack([expected, -expected]))


def test_a_batch_brings_its_mask_and_initial_maps():
    affine = torch.diag(torch.tensor([2.0, 1.0, 4.0, 1.0]))
    maps = torch.eye(4).repeat(1, 3, 1, 1)
    maps[0, 2, :3, 3] = torch.tensor([4.0, 1.0, 2.0])
    x, mask = torch.rand(1, 3, 4, 4, 4), torch.ones(1, 1, 4, 4, 4)
    image, target, _, options = prepare_series({"image": x, "mask": mask, "initial": maps, "affine": affine[None]})
    assert image is x and target is None and options["mask"] is mask
    torch.testing.assert_close(options["initial"][0, 2, :3, 3], torch.tensor([2.0, 1.0, 0.5]).double())
    assert options["initial"].sum() == 3.5
    assert prepare_series({"image": x})[3] == {"one_header": True}


class Nothing(LocalNetwork):
    """Network that predicts no motion."""

    def forward(self, images):
        return torch.cat([torch.zeros_like(super().forward(images)[:, : 3 * images.shape[1]])] * 2, dim=1)


def test_one_way_is_refined_as_far_as_a_pair_that_meets_halfway():
    phantom = make_phantom(4, size=(44, 40, 36), timepoints=2, max_motion_voxels=3, landmarks=300)
    x = (phantom["image"] / phantom["image"].quantile(0.99)).clamp(0, 1)[None]
    results, error = {}, {}
    for alignment in (ReferenceAlignment(0), OneWayAlignment(0)):
        refinement = Refinement(LocalCorrelation(), FluidPrior(0, 0, 0, 60), prior_weights=LikeliestWeights())
        options = {"alignment": alignment, "refinement": refinement, "draws": 3}
        result = inferer(**options)(x, Nothing().eval())
        fields = (DisplacementField.on_voxels(result[name]) for name in ("ddf", "inverse_ddf"))
        error[type(alignment)] = landmark_distances_mm(
            phantom["landmarks"], timepoint_transforms(*fields, torch.eye(4))
        ).mean()
        results[type(alignment)] = result
    one_way, halfway = results[OneWayAlignment], results[ReferenceAlignment]
    assert one_way["dvf"][:, 0].abs().max() == 0 and one_way["ddf_std"][:, 0].abs().max() == 0
    assert error[OneWayAlignment] < 1.5 * error[ReferenceAlignment]
    # All of the way takes the velocity that the two halves take together, and spreads as much.
    whole, halves = one_way["dvf"][:, 1], halfway["dvf"][:, 1] - halfway["dvf"][:, 0]
    energy = [FluidPrior(0, 0, 0, 60).energy(v[:, None]).sum() for v in (whole, halves)]
    assert 0.7 < energy[0] / energy[1] < 1.4
    spread = [result["ddf_std"][:, 1].mean() for result in (one_way, halfway)]
    assert 0.7 < spread[0] / spread[1] < 1.4


def test_several_velocities_are_refined_by_what_they_share():
    class ThreePieces(Nothing):
        def forward(self, images):
            mean = super().forward(images)[:, : 3 * images.shape[1]].unflatten(1, (-1, 3))
            return torch.cat([mean.repeat(1, 1, 3, 1, 1, 1).flatten(1, 2)] * 2, dim=1)

    x = images((36, 32, 32), timepoints=1)
    x = torch.cat([x, x.roll(2, dims=2)], dim=1)[:, :, 3:-3]
    refinement = Refinement(LocalCorrelation(), FluidPrior(0, 0, 0, 60), prior_weights=LikeliestWeights())
    ask = RegistrationInferer(GeodesicMeanAlignment(), FlowSequence(ScalingAndSquaring(4), 3), refinement=refinement)
    result = ask(x, ThreePieces().eval())
    shift = (result["ddf"][0, 1, 0] - result["ddf"][0, 0, 0])[4:-4, 4:-4, 4:-4].mean()
    assert shift.item() == pytest.approx(2, abs=0.1) and result["dvf"].shape[2] == 9
