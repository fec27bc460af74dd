from types import SimpleNamespace

import pytest
import torch

from groupmorph_monai.workflow import GradientClip


@pytest.mark.parametrize("norm, expected", [(1.0, 1.0), (100.0, 5.0)])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_true_gradient_is_clipped_whatever_it_was_scaled_by(norm, expected, scaled):
    network = torch.nn.Linear(2, 1, bias=False)
    scaler, optimizer = torch.amp.GradScaler("cpu", enabled=scaled), torch.optim.SGD(network.parameters(), lr=1.0)
    scaler.scale(network(torch.tensor([3.0, 4.0])).sum()).backward()
    GradientClip(network, norm)(SimpleNamespace(scaler=scaler if scaled else None, optimizer=optimizer))
    assert network.weight.grad.norm().item() == pytest.approx(expected)
    before = network.weight.detach().clone()
    scaler.step(optimizer)
    assert (network.weight - before).norm().item() == pytest.approx(expected)
