"""Two processes train together by gloo, with the requested iterations and rates, and one log."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from bundle_runs import NARROW, TINY, config_paths, last_weights, network_settings, read_scalars, run_config

from groupmorph_monai.workflow import RandomDraws, StopAfter, warmup_and_cosine

REPOSITORY = Path(__file__).parents[2]
ITERATIONS, RATE = 6, 1e-3
OPTIONS = {
    **TINY,
    **network_settings(NARROW),
    "phantom_timepoints": 3,
    "phantoms_training": 8,
    "phantoms_validation": 2,
    "max_iterations": ITERATIONS,
    "iterations_per_epoch": 3,
    "learning_rate": RATE,
    "log_interval": 1,
}
# Only the choice of the series is random.
SAME = {
    "patch_size_voxels": [20, 20, 20],
    "timepoints_least": 3,
    "timepoints_most": 3,
    "timepoints_in_order": True,
    "motion_probability": 0.0,
    "flip_probability": 0.0,
    "contrast_probability": 0.0,
}
MEAN_POSTERIOR = {"posterior#_target_": "mean_posterior.MeanPosterior"}


def start(output, own_configs=(), **options):
    """Start two processes; standard error and output go to ``output``/log."""
    configs = [*config_paths("train", "multi_gpu_train"), *map(str, own_configs)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "training"]
    command += ["--config_file", str(configs)]
    for name, value in {**OPTIONS, "output_dir": str(output), **options}.items():
        command += [f"--{name}", str(value)]
    paths = os.pathsep.join(filter(None, [str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH")]))
    output.mkdir(exist_ok=True)
    with open(output / "log", "a", encoding="utf-8") as log:
        return subprocess.Popen(
            command, cwd=REPOSITORY, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": paths}
        )


def train_together(output, own_configs=(), **options):
    code = start(output, own_configs, **options).wait(timeout=900)
    assert code == 0, (output / "log").read_text(encoding="utf-8")[-3000:]
    return output


def children(process):
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    own = folder / "own.yaml"
    own.write_text(yaml.safe_dump({"+initialize": [{"_target_": "threads_at_exit.print_at_exit"}]}), encoding="utf-8")
    return train_together(folder / "run", [own], max_minutes=60)


@pytest.mark.slow
def test_iterations_rates_and_logs_are_as_requested(together):
    steps, rates = read_scalars(together, "train/learning_rate")
    assert steps == list(range(1, ITERATIONS + 1))
    # The log has the rate of the iteration that follows.
    assert rates == pytest.approx([RATE * warmup_and_cosine(n, ITERATIONS) for n in steps], abs=1e-9)
    assert read_scalars(together, "validation_loss")[0] == [1, 2]
    # TensorBoard's files are named by time, host and process.
    files = [file.name for file in (together / "tensorboard").iterdir()]
    assert len({re.search(r"\.(\d+)\.\d+$", name)[1] for name in files}) == 1
    log = (together / "log").read_text(encoding="utf-8")
    for line in (r"Epoch\[1\] Metrics -- .*validation_loss", r"SupervisedTrainer: Epoch\[2\] Complete"):
        assert len(re.findall(line, log)) == 1, line


@pytest.mark.slow
def test_the_threads_of_the_process_group_end_before_python_does(together):
    """Otherwise they sometimes abort a process that has finished."""
    log = (together / "log").read_text(encoding="utf-8")
    threads = re.findall("threads at exit: .*", log)
    assert len(threads) == 2 and not any("gloo" in line for line in threads), threads


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_goes_on_to_the_same_numbers(together, tmp_path):
    output = tmp_path / "killed"
    process = start(output)
    deadline = time.monotonic() + 900
    while not (output / "checkpoint_epoch=1.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline, (output / "log").read_text(encoding="utf-8")[
            -3000:
        ]
        time.sleep(0.02)
    os.kill(int(children(process)[-1]), signal.SIGKILL)
    assert process.wait(timeout=300) != 0
    assert not (output / "checkpoint_epoch=2.pt").exists()
    train_together(output)
    resumed = last_weights(output)
    for name, value in last_weights(together).items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_global_batch(tmp_path):
    own, one = tmp_path / "own.yaml", tmp_path / "one"
    own.write_text(yaml.safe_dump(MEAN_POSTERIOR), encoding="utf-8")
    train_together(tmp_path / "two", [own], **SAME)
    run_config("training", "train", output_dir=str(one), **{**OPTIONS, **SAME, **MEAN_POSTERIOR, "batch_size": 2})
    for name in ("validation_loss", "landmark_after_mm"):
        assert read_scalars(tmp_path / "two", name)[1] == pytest.approx(read_scalars(one, name)[1], rel=1e-4)


def draws(monkeypatch, rank, of, number, epoch=1):
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: rank)
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: of)
    sampler = RandomDraws(range(7), number, seed=3)
    sampler.set_epoch(epoch)
    assert len(sampler) == number
    return list(sampler)


def test_processes_share_the_draws_of_one(monkeypatch):
    alone = draws(monkeypatch, 0, 1, 12)
    assert [draws(monkeypatch, rank, 3, 4) for rank in range(3)] == [alone[rank::3] for rank in range(3)]
    assert draws(monkeypatch, 0, 1, 12, epoch=2) != alone and draws(monkeypatch, 0, 1, 12) == alone
    many = draws(monkeypatch, 0, 1, 7000)
    assert all(abs(many.count(item) - 1000) < 150 for item in range(7))


def test_the_first_processs_clock_ends_all(monkeypatch):
    """The clock of the other process has no effect, whether it has reached the limit or not."""

    class Trainer:
        stopped = 0

        def terminate(self):
            self.stopped += 1

    for first_s, stopped in ((61.0, 1), (59.0, 0)):
        trainer, limit = Trainer(), StopAfter(minutes=1)
        limit._start(trainer)
        limit.started -= 120 - first_s  # this process's own clock
        monkeypatch.setattr("ignite.distributed.broadcast", lambda value, src, first_s=first_s: first_s)
        limit(trainer)
        assert trainer.stopped == stopped
