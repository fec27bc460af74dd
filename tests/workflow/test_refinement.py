import math
from dataclasses import replace

import pytest
import torch
from refinements import EXP, displacement, refinement, restart

from groupmorph_monai.data import make_phantom
from groupmorph_monai.data.storage import IN_MEMORY
from groupmorph_monai.errors import InputError
from groupmorph_monai.evaluation.metrics import folding_percent, landmark_distances_mm
from groupmorph_monai.probability import FluidPrior, GroupNMI, LocalCorrelation
from groupmorph_monai.space import Field, FlowSequence, MeanAlignment
from groupmorph_monai.space.cosine_transform import CosineTransform
from groupmorph_monai.space.filters import gaussian_filter
from groupmorph_monai.space.transforms import interpolate
from groupmorph_monai.workflow import LikeliestWeights, Refinement, Schedule, timepoint_transforms
from groupmorph_monai.workflow.conjugate_gradients import ascent, solve
from groupmorph_monai.workflow.evidence import Evidence, Level, Quadratic
from groupmorph_monai.workflow.posterior_draws import _TAILS
from groupmorph_monai.workflow.precision import Precision
from groupmorph_monai.workflow.trust_region import TrustRegion, take_step


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(4, size=(44, 40, 36), timepoints=4, max_motion_voxels=3, landmarks=300)


def images(phantom):
    x = phantom["image"]
    return (x / x.quantile(0.99)).clamp(0, 1)[None]


def start(phantom, timepoints=4):
    size = phantom["image"].shape[1:]
    return Field(torch.zeros(1, timepoints, 3, *[-(-n // 4) for n in size]), size, 4)


def unmoved(phantom):
    return start(phantom).at(2)


def errors(phantom, z):
    ddf, inverse = (z.with_values(EXP(v)).on_image()[0] for v in (z.values, -z.values))
    transforms = timepoint_transforms(ddf, inverse, torch.eye(4))
    return landmark_distances_mm(phantom["landmarks"], transforms), folding_percent(ddf)


def test_it_finds_a_known_motion_under_changing_contrast(phantom):
    before, _ = errors(phantom, unmoved(phantom))
    z = refinement(iterations=(0, 0, 4, 4, 8))(start(phantom), images(phantom), displacement)
    after, folds = errors(phantom, z)
    assert before.mean() > 1
    assert after.median() < 0.12 and after.mean() < 0.2 * before.mean() and folds == 0
    assert z.values.mean(dim=1).abs().max() < 1e-4


def test_a_small_scan_is_aligned_with_large_ones(phantom):
    x, first, last = images(phantom), torch.tensor([12, 10, 8]), torch.tensor([31, 29, 27])
    coverage = torch.ones_like(x)
    coverage[:, 1] = 0
    coverage[:, 1, 12:32, 10:30, 8:28] = 1
    z = refinement(iterations=(0, 0, 4, 4, 8))(start(phantom), x * coverage, displacement, Evidence(coverage))
    model = Level(x * coverage, Evidence(coverage), 1, 2).model(LocalCorrelation(), displacement(z.values))
    # Nothing moves all volumes that are measured at a voxel, which would also move those that are not.
    assert model.force.sum(dim=0).abs().max() < 1e-4 * model.force.abs().max()
    ddf, inverse = (z.with_values(EXP(v)).on_image()[0] for v in (z.values, -z.values))
    points = phantom["landmarks"]
    covered = ((points[1] >= first) & (points[1] <= last)).all(dim=1)
    common = points[1] + interpolate(inverse[1], points[1])
    errors_voxels = [common + interpolate(ddf[k], common) - points[k] for k in (0, 2, 3)]
    assert covered.sum() > 50 and torch.stack(errors_voxels)[:, covered].norm(dim=2).mean() < 0.25


def test_a_likelihood_without_a_closed_form_works_too(phantom):
    before, _ = errors(phantom, unmoved(phantom))
    after, _ = errors(phantom, refinement(likelihood=GroupNMI())(start(phantom), images(phantom), displacement))
    assert after.mean() < 0.8 * before.mean()


def test_it_repeats_itself_and_a_batch_equals_its_items(phantom):
    # Of more conjugate steps rounding, which follows the order of the timepoints, leaves more.
    short = refinement(iterations=(2, 2, 2, 2, 1), conjugate_steps=8)
    x = images(phantom)
    batch = torch.cat([x, x.flip(1)])
    begin = start(phantom)
    together = short(begin.with_values(begin.values.expand(2, -1, -1, -1, -1, -1)), batch, displacement).values
    assert torch.equal(together[:1], short(begin, x, displacement).values)
    torch.testing.assert_close(together[1:], together[:1].flip(1), atol=2e-3, rtol=0)


def test_what_lies_outside_of_the_mask_does_not_drive_the_result(phantom):
    x = images(phantom)
    mask = torch.zeros_like(x)
    mask[:, :, :22] = 1
    disturbed = x.clone()
    disturbed[:, :, 34:] = torch.rand(disturbed[:, :, 34:].shape, generator=torch.Generator().manual_seed(0))
    # Windows and smoothing reach 12 voxels at most: what is disturbed lies beyond.
    short = refinement(levels=(2, 1), iterations=(3, 2), prior_weights=None)

    def refined(images, mask=None):
        return short(start(phantom), images, displacement, Evidence(mask=mask)).values

    clean, same, free = refined(x, mask), refined(disturbed, mask), refined(disturbed)
    inside = (..., slice(0, 10), slice(None), slice(None))
    assert (same - clean)[inside].abs().max() < 0.02
    torch.testing.assert_close(refined(x, mask[:, :1]), clean, atol=0.3, rtol=0)
    assert (free - clean).abs().max() > 0.1


def test_a_level_begins_from_the_likelier_field(phantom):
    ask, x = refinement(levels=(2, 1), iterations=(3, 2)), images(phantom)
    refined = ask(start(phantom), x, displacement)
    nothing = refined.with_values(torch.zeros_like(refined.values))
    for one, other in ((refined, nothing), (nothing, refined)):
        z, any_static = restart(ask, (one, other), [nothing], x)
        assert torch.equal(z.values, refined.values) and not any_static


def dense_precision(precision, size, linear_is_free):
    """``(N, N)`` of one component on N voxels: of the cosine coordinates' eigenvalues, and with linear fields, but not
    constant ones, which cost nothing as it is or are held, integrated out."""
    number = math.prod(size)
    cosine, identity = CosineTransform(size, precision.spectrum), torch.eye(number).double().view(number, *size)
    dense = cosine.inverse(precision.spectrum * cosine(identity)).flatten(1)
    if not linear_is_free:
        return dense
    axes = torch.meshgrid(*[torch.arange(n).double() - (n - 1) / 2 for n in size], indexing="ij")
    linear = torch.stack([axis.flatten() for axis in axes], dim=1)
    across = dense @ linear
    return dense - across @ torch.linalg.solve(linear.T @ across, across.T)


@pytest.mark.parametrize("linear_is_free", [False, True])
def test_a_step_solves_the_normal_equations(linear_is_free):
    generator = torch.Generator().manual_seed(0)
    size, timepoints = (3, 4, 2), 3
    root = torch.randn(3, 3, *size, generator=generator, dtype=torch.float64)
    # One curvature for all timepoints, so that the dense solution of mean 0 is the mean-free part of each one's own.
    curvature = torch.einsum("de...,fe...->df...", root, root).expand(timepoints, 3, 3, *size)
    force = torch.randn(timepoints, 3, *size, generator=generator, dtype=torch.float64)
    z = torch.randn(timepoints, 3, *size, generator=generator, dtype=torch.float64)
    terms = FluidPrior(0.5, 0.1, 0.2, 0.3).terms(size)
    precision = Precision(terms, [1.0] * 4, linear_is_free)
    model = Quadratic(torch.tensor(0.0), torch.tensor(3), force, curvature)
    solution = solve(model, precision, ascent(model, precision, z), steps=400)
    prior = dense_precision(precision, size, linear_is_free)
    dense = torch.block_diag(prior, prior, prior)
    for d in range(3):
        for e in range(3):
            dense[24 * d : 24 * d + 24, 24 * e : 24 * e + 24] += torch.diag(curvature[0, d, e].flatten())
    right = force.flatten(1) - (z.flatten(2) @ prior).flatten(1)
    expected = torch.linalg.solve(dense, (right - right.mean(0)).T).T
    # The solver stops at a hundredth of the residual's length.
    assert (solution.flatten(1) - expected).norm() < 0.05 * expected.norm()


def test_rounding_does_not_grow_where_few_voxels_determine_a_step():
    generator = torch.Generator().manual_seed(0)
    size, timepoints = (16, 14, 12), 3
    seen = torch.rand(size, generator=generator) < 0.02
    root = seen * torch.randn(timepoints, 3, 3, *size, generator=generator)
    curvature = torch.einsum("kde...,kfe...->kdf...", root, root)
    force = seen * torch.randn(timepoints, 3, *size, generator=generator)
    precision = Precision([term.float() for term in FluidPrior(0, 0, 0, 0.1).terms(size)], [1.0] * 4, True)
    steps = []
    for factor in (1, 1 + 1e-6):
        model = Quadratic(torch.tensor(0.0), torch.tensor(3), factor * force, curvature)
        steps.append(solve(model, precision, ascent(model, precision, torch.zeros_like(force)), steps=16))
    assert steps[0].dtype == torch.float32
    assert (steps[1] - steps[0]).abs().max() < 1e-5 * steps[0].abs().max()


def test_linear_fields_cost_nothing_where_only_higher_differences_do():
    prior = FluidPrior(0, 0, 0.2, 2.0)
    axes = torch.meshgrid(*[torch.arange(n).double() for n in (6, 5, 7)], indexing="ij")
    linear = CosineTransform((6, 5, 7), axes[0])(2 * axes[0] - 0.5 * axes[1] + 3 * axes[2] + 1)
    precision = Precision(prior.terms((6, 5, 7)), [1.0, 3.0], prior.linear_is_free)
    assert prior.linear_is_free and not FluidPrior(0.1, 0, 0, 2.0).linear_is_free
    assert precision.energy(linear) < 1e-20 * linear.square().sum()
    square = CosineTransform((6, 5, 7), axes[0])(axes[0] ** 2)
    assert precision.energy(square) > 1
    torch.testing.assert_close(precision.without_linear(linear + square), precision.without_linear(square))


@pytest.mark.parametrize("prior", [FluidPrior(0.3, 0.5), FluidPrior(0, 0, 0.3, 0.5)], ids=["held", "linear free"])
@pytest.mark.parametrize("timepoints", [2, 3])
@pytest.mark.parametrize(("pieces", "factor"), [(1, 1.0), (2, 1.0), (1, 1.5)])
def test_draws_have_the_covariance_of_the_posterior(timepoints, pieces, factor, prior, monkeypatch):
    size, generator = (2, 3, 2), torch.Generator().manual_seed(0)
    fields = (timepoints, 3, *size)
    number = timepoints * 3 * 12
    root = torch.randn(timepoints, 3, 3, *size, generator=generator, dtype=torch.float64)
    curvature = torch.einsum("kde...,kfe...->kdf...", root, root)
    model = Quadratic(torch.tensor(0.0), torch.tensor(2), torch.zeros(fields, dtype=torch.float64), curvature)
    ask = Refinement(LocalCorrelation(), prior, prior_weights=LikeliestWeights(factor=factor))
    # Weights of 1, `factor` times as large as those that the fields of the series have.
    monkeypatch.setattr(LikeliestWeights, "__call__", lambda self, precision, *arguments: precision)
    signal = torch.rand(timepoints, 1, 1, *size, generator=generator, dtype=torch.float64)
    determined = replace(model, curvature=signal * curvature)
    monkeypatch.setattr(Level, "model", lambda *arguments: model)
    monkeypatch.setattr(Level, "without_guide_noise", lambda *arguments: determined)
    # A draw is linear in its white noise: unit vectors in its place give the covariance without chance.
    units = iter(torch.eye(2 * number, dtype=torch.float64).reshape(-1, *fields))
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: next(units))
    z = torch.ones(1, timepoints, 3 * pieces, *size, dtype=torch.float64)
    images = torch.zeros(1, timepoints, *size)
    draws = ask.draws(Field(z, size), images, lambda z: z, number=2 * number)
    scaled = (torch.cat([draw.values for draw in draws]) - z) / _TAILS
    shared = scaled.unflatten(2, (pieces, 3))[:, :, 0].reshape(2 * number, number)
    terms = [pieces * term for term in prior.terms(size)]
    one = dense_precision(Precision(terms, [1.0] * 2, prior.linear_is_free), size, prior.linear_is_free)

    def precision(curvature, factor=1.0):
        dense = torch.block_diag(*[factor * one] * (3 * timepoints)).reshape(timepoints, 3, 12, timepoints, 3, 12)
        for k in range(timepoints):
            for d in range(3):
                for e in range(3):
                    dense[k, d, :, k, e] += torch.diag(curvature[k, d, e].flatten())
        return basis.T @ dense.reshape(number, number) @ basis

    # An orthonormal basis of the fields of mean 0 over K.
    free = torch.linalg.eigh(torch.eye(timepoints).double() - 1 / timepoints).eigenvectors[:, 1:]
    basis = torch.einsum("km,ab->kamb", free, torch.eye(36, dtype=torch.float64)).reshape(number, -1)
    bread = torch.linalg.inv(precision(determined.curvature))
    expected = basis @ bread @ precision(curvature, factor) @ bread @ basis.T
    # The solver stops at a hundredth of the residual's length.
    assert (shared.T @ shared - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("timepoints", [2, 6])
def test_noise_alone_determines_nothing_and_anatomy_without_noise_all(timepoints):
    likelihood = LocalCorrelation((2,), noise=1e-3)
    noise = torch.rand(1, timepoints, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    gains = torch.linspace(1, 2, timepoints).view(1, -1, 1, 1, 1)
    anatomy = gains * gaussian_filter(noise[:, :1], 1.5).expand_as(noise)
    ddf, shares = torch.zeros(1, timepoints, 3, 16, 16, 16), []
    for x in (noise, anatomy):
        level = Level(x, Evidence(mask=torch.ones_like(x)), 1, 2)
        model = level.model(likelihood, ddf)
        shares.append(float(level.without_guide_noise(model, likelihood, ddf).curvature.sum() / model.curvature.sum()))
    assert shares[0] < 0.3 and shares[1] > 0.7


@pytest.mark.parametrize("share", [0.03, 0.3])
def test_draws_have_the_priors_weights_of_the_mode(share, phantom, monkeypatch):
    ask, x, precisions = refinement(prior_weights=LikeliestWeights(share)), images(phantom), []
    own = LikeliestWeights.__call__
    monkeypatch.setattr(
        LikeliestWeights, "__call__", lambda *arguments: precisions.append(own(*arguments)) or precisions[-1]
    )
    z = ask(start(phantom), x, displacement)
    modes = [float(weight) for weight in precisions[-1].weights]
    next(ask.draws(z, x, displacement, number=1))
    of_draws = [float(weight) for weight in precisions[-1].weights]
    assert of_draws == pytest.approx(modes, rel=0.05) and modes != pytest.approx([1.0], rel=0.05)


def test_the_priors_weights_are_the_likeliest_times_the_factor(phantom):
    z = start(phantom).at(2)
    z = z.with_values(z.values + 0.1 * torch.randn(z.values.shape, generator=torch.Generator().manual_seed(0)))
    model = Level(images(phantom), Evidence(), 2, 2).model(LocalCorrelation(), displacement(z.values))
    precision = Precision([FluidPrior(0, 0, 0, 60).spectrum(z.values.shape[3:], z.step).to(z.values)], [1.0], True)
    likeliest, held = (LikeliestWeights(factor=f)(precision, z.values[0], model).weights for f in (1.0, 1.4))
    assert [float(w) for w in held] == pytest.approx([1.4 * float(w) for w in likeliest])


def test_draws_need_a_likelihood_in_nats():
    refinement().check_draws(20)
    with pytest.raises(InputError, match="std_draws .--std.: expected 0 with GroupNMI.*got 20.*multi_kernel"):
        refinement(likelihood=GroupNMI()).check_draws(20)


def test_most_true_errors_lie_within_the_interval_that_draws_give(phantom):
    ask, x = refinement(), images(phantom)
    z = ask(start(phantom), x, displacement)
    spread = torch.cat([displacement(draw.values) for draw in ask.draws(z, x, displacement, number=12)]).std(dim=0)
    ddf, inverse, std = (z.with_values(u).on_image()[0] for u in (EXP(z.values), EXP(-z.values), spread[None]))
    points = phantom["landmarks"]
    common = torch.stack([p + interpolate(u, p) for p, u in zip(points, inverse)])
    shares = []
    for i, j in ((0, 1), (1, 2), (3, 0)):
        error = common[i] + interpolate(ddf[j], common[i]) - points[j]
        interval = 1.645 * (interpolate(std[i], common[i]).square() + interpolate(std[j], common[i]).square()).sqrt()
        shares.append((error.abs() < interval).float().mean())
    assert 0.75 < torch.stack(shares).mean() < 0.99


def test_the_evidence_finds_the_weight_that_fields_were_drawn_with():
    size, generator = (12, 10, 11), torch.Generator().manual_seed(0)
    prior = FluidPrior(0, 1e-3, 0, 2.0)
    like = torch.zeros(4, 3, *size, dtype=torch.float64)
    white = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    z = CosineTransform(size, like).inverse(white * prior.spectrum(size).rsqrt())
    z = z - z.mean(0)
    precision = Precision([FluidPrior(0, 0, 0, 2.0).spectrum(size)], [1.0], True)
    curvature = 1e6 * torch.eye(3, dtype=z.dtype).view(1, 3, 3, 1, 1, 1).expand(4, 3, 3, *size)
    model = Quadratic(torch.tensor(0.0), torch.tensor(4), torch.zeros_like(z), curvature)
    (weight,) = LikeliestWeights(independent_share=1.0)(precision, z, model).weights
    assert weight == pytest.approx(1, rel=0.1)


def test_of_several_velocities_what_they_share_is_refined_and_what_sets_them_apart_is_kept(phantom):
    x, short = images(phantom), refinement(levels=(4, 2, 1), iterations=(4, 4, 3))
    sequence = FlowSequence(EXP, 3)

    def one_after_the_other(z):
        return sequence(MeanAlignment(remove_mean=True).constrain(z))

    begin = start(phantom)
    stationary = short(begin, x, displacement).values
    alike = short(begin.with_values(begin.values.repeat(1, 1, 3, 1, 1, 1)), x, one_after_the_other)
    assert stationary.abs().mean() > 0.1
    # Three flows of a third each are the one, up to the integration's own error; at the border evidence comes and goes.
    inner = (..., *[slice(3, -3)] * 3)
    difference = alike.values - stationary.repeat(1, 1, 3, 1, 1, 1)
    assert difference[inner].abs().mean() < 0.05 * stationary[inner].abs().mean()
    first, second, third = (v.view(1, 1, 3, 1, 1, 1) * torch.ones_like(begin.values) for v in torch.eye(3))
    apart = torch.cat([first, second, third], dim=2)
    kept = short(begin.with_values(apart), x, one_after_the_other).values.chunk(3, dim=2)
    for part, start_part in zip(kept, apart.chunk(3, dim=2)):
        difference = part - (kept[0] + kept[1] + kept[2]) / 3
        # On every second voxel instead of every fourth a voxel is half as long.
        expected = 2 * (start_part - (first + second + third) / 3)[..., :1, :1, :1].expand_as(difference)
        torch.testing.assert_close(difference, expected, atol=1e-4, rtol=0)
    draws = [draw.values for draw in short.draws(alike, x, one_after_the_other, number=2)]
    assert draws[0].shape == alike.values.shape and (draws[0] - draws[1]).abs().max() > 1e-3
    parts = (draws[0] - alike.values).chunk(3, dim=2)
    torch.testing.assert_close(parts[1], parts[0], atol=1e-5, rtol=0)


def test_a_level_is_left_out_where_its_images_would_be_smaller_than_8_samples():
    schedule = Schedule((16, 8, 4, 2, 1), (5, 4, 3, 2, 1), lattice_voxels=2)
    assert schedule.stages((200, 128, 130))[0] == (16, 5, 16)
    assert schedule.stages((200, 40, 40)) == [(4, 3, 4), (2, 2, 2), (1, 1, 2)]
    assert [stage.least_voxels for stage in schedule.stages((10, 12, 9))] == [8**3, 1]
    with pytest.raises(ValueError, match="one number for each of the levels"):
        Schedule((2, 1), (3,))


def test_the_mean_step_is_half_a_voxel_of_the_lattice_at_most():
    z = Field(torch.zeros(1, 2, 3, 4, 4, 4), (8, 8, 8), 2)
    for length, taken in ((0.2, 0.28), (3.0, 0.5)):
        dz = torch.zeros(2, 3, 4, 4, 4)
        dz[:, 1] = length
        after, mean = take_step(z, dz, IN_MEMORY)
        assert mean == pytest.approx(2 * taken) and torch.allclose(after.values[0, :, 1], torch.tensor(taken))


def test_a_step_too_far_is_taken_back_and_a_shorter_one_follows(monkeypatch):
    """Where the model has a quarter of the true curvature, each step goes four times as far as it should.

    Two timepoints move apart or together by one number, which the prior leaves free and whose best value is 0.
    """
    size, places = (4, 3, 5), []

    def model(level, likelihood, ddf):
        z = ddf[0]
        places.append(z[0, 0].mean().item())
        curvature = 0.25 * torch.eye(3, dtype=z.dtype).view(1, 3, 3, 1, 1, 1).expand(2, 3, 3, *size)
        return Quadratic(-0.5 * z.square().sum(), torch.tensor(2), -z, curvature)

    monkeypatch.setattr(Level, "model", model)
    schedule = Schedule(levels=(1,), iterations=(14,), tolerance=1e-6, lattice_voxels=1)
    ask = Refinement(LocalCorrelation(), FluidPrior(1.0, 0.0), schedule)
    begin = torch.zeros(1, 2, 3, *size, dtype=torch.float64)
    begin[:, 0, 0], begin[:, 1, 0] = 0.3, -0.3
    ask(Field(begin, size), torch.zeros(1, 2, *size), lambda z: z)
    # Half a voxel is the longest step: 0.3, then -0.2, then 0.3 again, which is worse. From -0.2 once more, with 1 + 8
    # times the curvature: 4 / 9 of the way and not 4 times it.
    assert places[:4] == pytest.approx([0.3, -0.2, 0.3, -0.2 + 0.2 * 1.4 * 4 / 9])
    assert abs(places[-1]) < 0.02


def test_a_step_that_only_costs_prior_energy_is_taken_back():
    size = (4, 3, 5)
    near, far = (Field(length * torch.rand(1, 2, 3, *size), size) for length in (0.01, 10.0))
    model = Quadratic(torch.tensor(-1.0), torch.tensor(2), torch.zeros(2, 3, *size), torch.zeros(2, 3, 3, *size))
    precision = Precision(FluidPrior(1.0, 0.1).terms(size), [1.0] * 2, False)
    for first, last in ((near, far), (far, near)):
        region = TrustRegion(first)
        for z in (first, last):
            region.accept(z, model, precision)
        assert torch.equal(region.z.values, near.values)


def test_voxels_that_move_out_of_view_do_not_count_as_a_gain():
    force, curvature = torch.zeros(2, 3, 3), torch.zeros(2, 3, 3, 3)
    before = Quadratic(torch.tensor([-1.0, -2.0, -3.0, -4.0]), torch.tensor([2.0, 2, 2, 2]), force, curvature)
    after = Quadratic(torch.tensor([-0.5, -1.0, 0.0, -0.5]), torch.tensor([2.0, 2, 0, 0.5]), force, curvature)
    gain = 0.5 + 1 + 0.5 * (-1 + 2)  # the last for the share of a volume that both cover
    assert after.gain_over(before) == gain and before.gain_over(after) == -gain


def test_a_single_mask_moves_with_its_own_timepoint():
    mask, ddf = torch.rand(1, 1, 6, 5, 4), torch.zeros(1, 3, 3, 6, 5, 4)
    ddf[:, 0, 0] = 2
    level = Level(mask.repeat(1, 3, 1, 1, 1), Evidence(mask=mask, mask_timepoint=2), 1, 1)
    torch.testing.assert_close(level.warped(ddf)[2], mask)


def test_a_step_that_changes_only_what_the_mask_leaves_out_is_neither_better_nor_worse():
    x = torch.rand(1, 1, 16, 14, 12, generator=torch.Generator().manual_seed(0)).repeat(1, 2, 1, 1, 1)
    mask = torch.zeros_like(x[:, :1])
    mask[:, :, :6] = 1
    shifted = torch.zeros(1, 2, 3, 16, 14, 12)
    shifted[:, :, :, 10:] = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1, 1)
    for held in (mask, mask.expand_as(x)):
        level = Level(x, Evidence(mask=held), 1, 1)
        one, other = (level.model(LocalCorrelation((1,)), ddf) for ddf in (torch.zeros_like(shifted), shifted))
        assert abs(float(other.gain_over(one))) < 1e-4 and one.voxels == 6 * 14 * 12
    free = Level(x, Evidence(), 1, 1)
    one, other = (free.model(LocalCorrelation((1,)), ddf) for ddf in (torch.zeros_like(shifted), shifted))
    assert abs(float(other.gain_over(one))) > 1


def test_where_nothing_counts_nothing_moves_and_no_draws_are_made():
    x = torch.rand(1, 2, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    nothing = Evidence(mask=torch.zeros_like(x[:, :1]))
    z = Field(torch.zeros(1, 2, 3, 12, 12, 12), (24, 24, 24), 2)
    assert not refinement()(z, x, displacement, nothing).values.any()
    with pytest.raises(InputError, match="std_draws.*two timepoints cover.*wider mask"):
        next(refinement().draws(z, x, displacement, nothing))
    with pytest.raises(ValueError, match="independent_share.*got 0, 1.0"):
        LikeliestWeights(independent_share=0)
    with pytest.raises(ValueError, match="factor.*got 0.2, 0"):
        LikeliestWeights(factor=0)
