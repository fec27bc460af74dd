"""Weights for pairs from those for more timepoints."""

import torch

from experiments.pair_weights import pair_weights
from groupmorph_monai.networks import GroupVAE

WIDTHS = {"encoder_channels": [4, 6, 6], "decoder_channels": [5]}


def test_a_pair_is_predicted_as_the_first_scan_and_copies_of_the_second():
    torch.manual_seed(0)
    group, pair = GroupVAE(timepoints=4, **WIDTHS), GroupVAE(timepoints=2, **WIDTHS)
    for head in (group.mean_head, group.variance_head):
        torch.nn.init.normal_(head.weight, std=0.05)
    with torch.no_grad():  # the heads of the copies differ by less than tanh bends
        pair.load_state_dict(pair_weights(group.state_dict()))
        images = torch.rand(1, 2, 16, 12, 8)
        mean, _ = pair(images).unflatten(1, (2, 2, 3)).unbind(dim=1)
        expected, _ = group(images[:, [0, 1, 1, 1]]).unflatten(1, (2, 4, 3)).unbind(dim=1)
    torch.testing.assert_close(mean[:, 0], expected[:, 0])
    torch.testing.assert_close(mean[:, 1], expected[:, 1:].mean(dim=1), atol=1e-3, rtol=0)
    assert expected[:, 1:].abs().mean() > 0.05
