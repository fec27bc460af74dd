from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedTrainer
from monai.handlers import from_engine

from groupmorph_monai.workflow import GradientClip, ListedOutput, StopAfter, Validation


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


def test_handlers_find_the_loss_of_a_whole_batch():
    """MONAI's experiment tracking reads the loss in this way."""
    network = torch.nn.Linear(2, 1)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": torch.ones(3, 2), "label": torch.zeros(3, 1)}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
        loss_function=torch.nn.MSELoss(),
        train_handlers=[ListedOutput()],
        decollate=False,
    )
    trainer.run()
    expected = network(torch.ones(2)).square().item()
    assert from_engine(["loss"], first=True)(trainer.state.output).item() == pytest.approx(expected)
    assert trainer.state.output[0]["pred"].shape == (3, 1)


@pytest.mark.parametrize("interval, handlers, validated", [(3, [], [3, 6, 7]), (9, [], [7]), (9, [StopAfter(0)], [1])])
def test_the_last_epoch_is_validated(interval, handlers, validated):
    trainer, epochs, validation = Engine(lambda *_: None), [], Validation(interval)
    validation.validator = SimpleNamespace(run=epochs.append)
    for handler in (*handlers, validation):
        handler.attach(trainer)
    trainer.run([0], max_epochs=7)
    assert epochs == validated
