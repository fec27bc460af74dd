import sys

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from groupmorph_monai.errors import InputError
from groupmorph_monai.workflow import WeightsLoader, read_weights


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2))


@pytest.mark.parametrize(
    "wrap", [lambda state: state, lambda state: {"network": state, "trainer": {"epoch_length": 3}}]
)
def test_a_state_dict_and_a_checkpoint_load_when_an_engine_starts(wrap, network, tmp_path):
    torch.save(wrap(network.state_dict()), tmp_path / "w.pt")
    other = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2))
    engine = Engine(lambda engine, batch: None)
    WeightsLoader(other, str(tmp_path / "w.pt")).attach(engine)
    assert not torch.equal(other[0].weight, network[0].weight)
    engine.run([0])
    assert all(torch.equal(other.state_dict()[name], value) for name, value in network.state_dict().items())


def test_a_network_that_several_processes_train_is_unwrapped(network, tmp_path, monkeypatch):
    # DataParallel cannot use the stand-in device of other tests.
    module = sys.modules["torch.nn.parallel.data_parallel"]  # a function of this name hides it
    monkeypatch.setattr(module, "_get_available_device_type", lambda: None)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    other = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2))
    WeightsLoader(nn.DataParallel(other), str(tmp_path / "w.pt"))(None)
    assert torch.equal(other[0].weight, network[0].weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_refused_by_its_name(value, network, tmp_path):
    state = network.state_dict()
    state["1.running_var"][1] = value
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match="1 NaN or infinite ones in 1.running_var"):
        read_weights(tmp_path / "w.pt")
