"""Weights of a `GroupVAE` for pairs from those of one for a fixed first scan and more timepoints.

``python -m experiments.pair_weights GROUP.pt PAIR.pt``: the pair's network predicts what the group's predicts for the
first scan and copies of the second. ``models/voxelmorph`` is trained from these weights.
"""

import argparse
from collections.abc import Mapping

import torch
from torch import Tensor

from groupmorph_monai.data.writing.output_folder import atomic_file
from groupmorph_monai.workflow.weights import read_weights

_HEADS = ("mean_head.weight", "mean_head.bias", "variance_head.weight", "variance_head.bias")


def pair_weights(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum the filters of all scans but the first, and average their predictions.

    Args:
        group: state dict of a `GroupVAE` for K timepoints.

    Returns:
        The state dict of one for two timepoints.
    """
    pair = {name: values.float() for name, values in group.items()}
    filters = pair["encoder.0.weight"]
    pair["encoder.0.weight"] = torch.stack([filters[:, 0], filters[:, 1:].sum(dim=1)], dim=1)
    for name in _HEADS:
        velocities = pair[name].unflatten(0, (filters.shape[1], -1))
        pair[name] = torch.cat([velocities[0], velocities[1:].mean(dim=0)])
    return pair


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("group")
    parser.add_argument("pair")
    arguments = parser.parse_args()
    with atomic_file(arguments.pair) as file:
        torch.save(pair_weights(read_weights(arguments.group)), file)
