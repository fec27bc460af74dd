import pytest
import torch

from groupmorph_monai.data import HEART_MOTIONS, MakePhantomd, heart_items, make_heart
from groupmorph_monai.evaluation.metrics import folding_percent
from groupmorph_monai.space import DisplacementField, sample, warp

SIZE = (40, 40, 28)


def test_the_volume_at_rest_moved_by_the_truth_is_the_contracted_one():
    heart = make_heart(3, "normal", size=SIZE, noise=0)
    rest, contracted = heart["image"]
    inside = heart["heart"] > 0
    warped = warp(rest[None, None], DisplacementField.on_voxels(heart["motion"][None, None]))[0, 0]
    assert (warped - contracted).abs()[inside].mean() < 0.03
    assert (rest - contracted).abs()[inside].mean() > 0.05
    at_rest, when_contracted = heart["landmarks"].mT[:, None, :, :, None, None]
    shown = sample(rest[None, None], at_rest), sample(contracted[None, None], when_contracted)
    assert heart["landmarks"].shape == (2, 2000, 3) and (shown[0] - shown[1]).abs().mean() < 0.03


@pytest.mark.parametrize("kind", HEART_MOTIONS)
def test_a_motion_has_a_seed_and_no_folds(kind):
    heart = make_heart(5, kind, size=SIZE)
    again, other = make_heart(5, kind, size=SIZE), make_heart(6, kind, size=SIZE)
    assert torch.equal(heart["image"], again["image"]) and not torch.equal(heart["motion"], other["motion"])
    assert folding_percent(DisplacementField.on_voxels(heart["motion"][None, None])) == 0
    assert heart["motion"].norm(dim=0)[heart["heart"] > 0].mean() > 0.4


def test_kinds_differ_by_their_motion_alone():
    hearts = [make_heart(5, kind, size=SIZE) for kind in HEART_MOTIONS]
    for number, one in enumerate(hearts):
        for other in hearts[:number]:
            assert torch.equal(one["image"][0], other["image"][0])
            assert (one["motion"] - other["motion"]).norm(dim=0)[one["heart"] > 0].mean() > 0.1


def test_another_hearts_motion_is_as_strong_and_lies_elsewhere():
    own, donor = make_heart(5, "normal", size=SIZE), make_heart(6, "normal", size=SIZE)
    carried = make_heart(5, "normal", motion_seed=6, size=SIZE)
    assert torch.equal(own["image"][0], carried["image"][0])
    # The motions of one heart differ in strength alone.
    ratio = carried["motion"].norm(dim=0)[own["heart"] > 0].mean() / own["motion"].norm(dim=0)[own["heart"] > 0].mean()
    assert 2 / 3 < ratio < 3 / 2 and ratio != 1
    assert not torch.allclose(donor["motion"], carried["motion"], atol=0.3)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind: expected one of normal"):
        make_heart(1, "wild")


def test_items_are_pairs_of_every_kind_in_turn():
    items = heart_items(range(7), SIZE)
    assert [item["heart"]["kind"] for item in items[:6]] == [*HEART_MOTIONS, "normal"]
    loaded = MakePhantomd()(items[1])
    assert torch.equal(loaded["image"].as_tensor(), make_heart(1, "weak", size=SIZE)["image"])
