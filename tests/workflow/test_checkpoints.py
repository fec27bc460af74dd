"""A toy training that is killed at any point resumes from its files with the same result."""

import errno
import math
import operator
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faults import KILLED, at_every_call, kill
from ignite.engine import Events
from ignite.metrics import Average
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from torch.utils.data import DataLoader

from groupmorph_monai.data.writing.output_folder import release_all
from groupmorph_monai.errors import InputError
from groupmorph_monai.workflow import (
    BestWeights,
    Checkpoints,
    EpochSeed,
    checkpoints,
    claim_for_training,
    warmup_and_cosine,
)
from groupmorph_monai.workflow.training_folder import logs_discarded_on_failure

DATA = [{"image": torch.full((1,), float(n)), "label": torch.full((1,), float(n % 3))} for n in range(4)]
# The validation loss of each epoch: the third is the best.
LOSSES = {1: 3.0, 2: 2.0, 3: 1.0, 4: 5.0, 5: 4.0, 6: 6.0}


class Noisy(torch.nn.Linear):
    """Network with random results, like draws of z."""

    def forward(self, x):
        return super().forward(x) + torch.randn(1)


class Toy:
    def __init__(self, folder, epochs, features=1, losses=LOSSES, killed_in=None, weights=None, rate=0.1):
        torch.manual_seed(0)
        self.network = Noisy(1, features)
        optimizer = torch.optim.Adam(self.network.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: warmup_and_cosine(n, 24))
        self.best = BestWeights(self.network, str(folder))
        metric = Average(output_transform=lambda _: losses[self.trainer.state.epoch])
        self.evaluator = SupervisedEvaluator(
            torch.device("cpu"), DataLoader(DATA[:1]), self.network, key_val_metric={"loss": metric},
            metric_cmp_fn=operator.lt, val_handlers=[self.best],
        )  # fmt: skip
        handlers = [EpochSeed(0, DATA), LrScheduleHandler(schedule, False, epoch_level=False)]
        self.trainer = SupervisedTrainer(
            torch.device("cpu"), epochs, DataLoader(DATA, shuffle=True), self.network, optimizer,
            torch.nn.functional.mse_loss, train_handlers=[*handlers, ValidationHandler(1, self.evaluator)],
        )  # fmt: skip
        if killed_in is not None:
            self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self._kill, killed_in)
        objects = {"network": self.network, "optimizer": optimizer, "lr_scheduler": schedule, "trainer": self.trainer}
        objects |= {"scaler": None}
        Checkpoints(objects, str(folder), self.best, {"weights": weights}, {"learning_rate": rate}).attach(self.trainer)

    def _kill(self, engine, epoch):
        if engine.state.epoch == epoch:
            raise KeyboardInterrupt

    def run(self):
        self.trainer.run()
        return self


def load(file):
    return torch.load(file, weights_only=True)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return one == other


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    Toy(folder, 6).run()
    return folder


def contents(folder):
    return {name: load(folder / name) for name in os.listdir(folder)}


def assert_finished(folder, finished):
    """Check that a run has the same files as an uninterrupted one, with the same content."""
    for name, content in contents(finished).items():
        assert same(load(folder / name), content), name


def test_the_last_two_checkpoints_and_the_best_weights_are_kept(finished):
    assert sorted(os.listdir(finished)) == ["checkpoint_epoch=5.pt", "checkpoint_epoch=6.pt", "model_best.pt"]
    last = load(finished / "checkpoint_epoch=6.pt")
    assert last["best"] == {"metric": 1.0, "epoch": 3}
    assert not same(last["network"], load(finished / "model_best.pt"))


@pytest.mark.parametrize("killed_in", [1, 2, 4, 5])
def test_a_killed_run_goes_on_to_the_same_numbers_and_knows_the_best_epoch(killed_in, finished, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Toy(tmp_path, 6, killed_in=killed_in).run()
    Toy(tmp_path, 6).run()
    assert sorted(os.listdir(tmp_path)) == sorted(os.listdir(finished))
    assert_finished(tmp_path, finished)


def test_files_beside_the_checkpoints_are_left_alone(finished, tmp_path):
    Toy(tmp_path, 4).run()
    for name in ("checkpoint_epoch=best.pt", "checkpoint_epoch=9 (copy).pt"):
        (tmp_path / name).write_bytes(b"a user's file")
    Toy(tmp_path, 6).run()
    assert {*os.listdir(finished)} < {*os.listdir(tmp_path)}
    assert_finished(tmp_path, finished)


def poison(file):
    checkpoint = load(file)
    checkpoint["network"]["weight"].fill_(math.nan)
    torch.save(checkpoint, file)


BROKEN = {
    "empty": (lambda file: file.write_bytes(b""), "an empty file"),
    "text": (lambda file: file.write_bytes(b"x"), "a different file of 1 bytes"),
    "half": (lambda file: file.write_bytes(file.read_bytes()[:4000]), "a damaged file of 4000 bytes"),
    "NaN": (poison, "NaN or infinity in network.weight"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_checkpoint_falls_back_to_the_one_before(kind, finished, tmp_path, caplog):
    Toy(tmp_path, 4).run()
    newest, (damage, reason) = tmp_path / "checkpoint_epoch=4.pt", BROKEN[kind]
    damage(newest)
    Toy(tmp_path, 6).run()
    assert f"checkpoint_epoch=4.pt is broken and ignored: {reason}" in caplog.text and "weights_only" not in caplog.text
    assert_finished(tmp_path, finished)


@pytest.mark.parametrize("kind", BROKEN)
def test_the_best_weights_are_kept_if_all_checkpoints_are_broken(kind, tmp_path):
    Toy(tmp_path, 4).run()
    for file in tmp_path.glob("checkpoint_epoch=*.pt"):
        BROKEN[kind][0](file)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="got only broken ones; choose another folder"):
        Toy(tmp_path, 6).run()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_that_goes_on_with_other_inputs_warns(tmp_path, caplog):
    Toy(tmp_path, 1, weights="a.pt").run()
    Toy(tmp_path, 2, weights="a.pt")
    assert "another folder" not in caplog.text
    Toy(tmp_path, 2, weights="b.pt")
    assert f"holds a run with weights {os.path.abspath('a.pt')}" in caplog.text and "another folder" in caplog.text


def test_a_run_does_not_go_on_at_another_learning_rate(tmp_path):
    Toy(tmp_path, 1).run()
    with pytest.raises(InputError, match=r"learning_rate: expected 0\.1, with which the run in .* began, got 0\.01;"):
        Toy(tmp_path, 2, rate=0.01)
    assert load(tmp_path / "checkpoint_epoch=1.pt")["settings"] == {"learning_rate": 0.1}


@pytest.mark.parametrize("epoch", [1, 3])
@pytest.mark.parametrize("writer", [BestWeights, Checkpoints])
def test_a_run_killed_between_two_files_goes_on(writer, epoch, finished, tmp_path, monkeypatch):
    """The weights of the best epoch and its checkpoint exist together; otherwise the run would be refused later."""
    toy = Toy(tmp_path, 6)
    save = checkpoints._AtomicSaver.__call__

    def killed(saver, content, name, *arguments):
        if toy.trainer.state.epoch == epoch and ("best" in name) == (writer is BestWeights):
            raise KeyboardInterrupt
        save(saver, content, name, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(checkpoints._AtomicSaver, "__call__", killed)
        toy.run()
    claim_for_training(str(tmp_path))
    release_all()
    Toy(tmp_path, 6).run()
    assert_finished(tmp_path, finished)


def test_logs_that_cannot_be_removed_do_not_hide_why_a_training_failed(tmp_path, monkeypatch):
    def not_empty(folder):  # as on NFS, where an open file is only renamed
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(folder))

    monkeypatch.setattr(Path, "rmdir", not_empty)
    with pytest.raises(InputError, match="the reason"), logs_discarded_on_failure(str(tmp_path / "out")):
        (tmp_path / "out" / "tensorboard").mkdir(parents=True)
        raise InputError("the reason")


def kill_everywhere(folder):
    """Train in child processes, each killed later than the previous one, which resume the same run."""
    ends = []
    for end in at_every_call(lambda: Toy(folder, 6).run(), kill, step=7):
        ends.append(end)
        for file in folder.glob("*.pt"):
            load(file)
    assert len(ends) > 2 and {*ends} == {0, KILLED}


def test_a_kill_at_any_change_of_the_disk_leaves_a_run_that_goes_on(finished, tmp_path):
    # In a separate process, as a fork cannot train after another test has started autograd's threads.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, __file__, str(tmp_path)], env=environment, check=True, timeout=300)
    claim_for_training(str(tmp_path))
    release_all()
    assert sorted(os.listdir(tmp_path)) == sorted(os.listdir(finished))
    assert_finished(tmp_path, finished)


@pytest.mark.parametrize("name", ["weight", "loss"])
def test_nothing_is_saved_that_is_not_finite(name, tmp_path):
    Toy(tmp_path, 2).run()
    before = contents(tmp_path)
    toy = Toy(tmp_path, 3, losses={3: math.nan if name == "loss" else 0.5})
    if name == "weight":
        toy.trainer.add_event_handler(Events.EPOCH_STARTED, lambda _: toy.network.weight.data.fill_(math.nan))
    with pytest.raises(InputError, match="expected finite weights, got NaN|expected a finite number after epoch 3"):
        toy.run()
    assert same(contents(tmp_path), before)


def test_a_run_that_cannot_be_continued_is_refused_in_one_line(finished):
    with pytest.raises(InputError, match="holds a run of 24 iterations, expected one of at most 8"):
        Toy(finished, 2)
    with pytest.raises(InputError, match="holds a run of another model"):
        Toy(finished, 7, features=2).run()


def test_a_finished_run_ends_at_once_with_what_it_was(finished):
    before = contents(finished)
    toy = Toy(finished, 6).run()
    assert toy.trainer.state.iteration == 24
    assert same(dict(toy.network.state_dict()), dict(before["checkpoint_epoch=6.pt"]["network"]))
    assert contents(finished).keys() == before.keys()


def test_the_learning_rate_never_climbs_after_the_warmup():
    rates = [warmup_and_cosine(n, 80, warmup=10) for n in range(120)]
    assert rates[:11] == pytest.approx([n / 10 for n in range(11)])
    assert rates[45] == pytest.approx(0.5) and rates[80:] == [0.0] * 40
    assert all(b <= a for a, b in zip(rates[10:], rates[11:]))
    assert warmup_and_cosine(40, 40) == 0.0 and warmup_and_cosine(40, 80) == pytest.approx(0.5)


def test_an_extended_run_takes_the_rate_of_the_longer_one(tmp_path):
    """The schedules of PyTorch and MONAI would keep the length of the run in which they were saved."""
    parameter = torch.nn.Parameter(torch.zeros(1))

    def schedule(iterations):
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: warmup_and_cosine(n, iterations))

    optimizer, short = schedule(40)
    for _ in range(40):
        optimizer.step()
        short.step()
    optimizer, long = schedule(80)
    long.load_state_dict(short.state_dict())
    rates = []
    for _ in range(40):
        optimizer.step()
        long.step()
        rates.append(long.get_last_lr()[0])
    assert rates == pytest.approx([(1 + math.cos(math.pi * n / 80)) / 2 for n in range(41, 81)])


def test_weights_in_the_output_folder_are_not_overwritten(finished):
    with pytest.raises(InputError, match="expected an output folder that holds no input"):
        claim_for_training(str(finished), str(finished / "model_best.pt"))


def test_weights_without_checkpoints_are_not_overwritten(tmp_path):
    (tmp_path / "model_best.pt").touch()
    with pytest.raises(InputError, match="model_best.pt: expected checkpoints of the same run, got none"):
        claim_for_training(str(tmp_path))
    assert os.listdir(tmp_path) == ["model_best.pt"]


if __name__ == "__main__":
    kill_everywhere(Path(sys.argv[1]))
