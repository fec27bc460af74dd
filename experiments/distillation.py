"""Weights of a network that predicts the velocities that the refinement finds, without labels (distillation).

``python -m experiments.distillation refine FOLDER`` draws series from the training data of a config, with its random
motion and contrast, and refines them under the default likelihood and prior; FOLDER keeps the velocities. ``train FILE
FOLDER ...`` trains the config's network to predict them in patches, and writes the weights, averaged over the last
iterations, to FILE. ``variance FILE FOLDER ...`` trains only the variance of the prediction, as ``train`` does last.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from ignite.metrics import RunningAverage
from monai.bundle import ConfigParser
from monai.data import set_rnd
from torch import Tensor, nn

from groupmorph_monai.apps.configs import config_files
from groupmorph_monai.apps.run import checked_run
from groupmorph_monai.data import RandIntervald, RandTimepointsd
from groupmorph_monai.data.writing.output_folder import atomic_file
from groupmorph_monai.probability import split_parameters
from groupmorph_monai.space.alignment import Alignment
from groupmorph_monai.workflow import RegistrationInferer, warmup_and_cosine
from groupmorph_monai.workflow.batches import as_images
from groupmorph_monai.workflow.parsed_config import parsed_config
from groupmorph_monai.workflow.weights import load_weights

Pair = tuple[Tensor, Tensor]  # images (K, *S), and velocities (K, 3, *S / 2) on every second voxel
_AVERAGE = 0.002  # share of the newest weights in the average
_ROUNDED_VOXELS = 0.05  # distance, in voxels of the lattice, below which the loss is quadratic
_MOST_NOISE = 0.1  # standard deviation of intensities in [0, 1]
_LOG_INTERVAL = 50
_SAVE_INTERVAL = 500


def refine_series(folder: Path, config: ConfigParser, numbers: Sequence[int], effort: Sequence[str] = ()) -> None:
    """Draw training series of ``config`` and refine them, with the overlays ``effort`` of the inference's config;
    ``folder`` keeps one file for each number, its random seed."""
    part = config.get_parsed_content
    inference = parsed_config(config_files("inference", effort), {"stationary_parts": False})
    refinement = inference.get_parsed_content("refinement")
    inferer = RegistrationInferer(part("alignment"), part("transformation"), refinement=refinement)
    network, dataset = part("network").eval(), part("train#dataset")
    for n in numbers:
        file = folder / f"{n:04d}.pt"
        if not file.exists():
            set_rnd(dataset, seed=n)
            images = as_images(dataset[n % len(dataset)]["image"])[None]
            velocity = inferer.fields(images, network)["dvf"]
            with atomic_file(file) as path:
                torch.save({"images": images[0].half(), "velocity": velocity[0].half()}, path)


class Patches:
    """Endless random patches of the refined series in files, each axis flipped at random, with a batch axis of 1.

    Args:
        files: files of `refine_series`.
        side: voxels along each axis of a patch; shorter axes are taken whole.
        stride: voxels between the points of the network's lattice, to which the velocities are thinned.
        select: selects timepoints of a pair, a dictionary; None for all in order.
        seed: random seed.
    """

    def __init__(
        self,
        files: Sequence[Path],
        side: int,
        stride: int,
        select: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
        seed: int = 0,
    ):
        self.files, self.side, self.stride, self.select = files, side, stride, select
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Pair]:
        thinned = self.stride // 2
        while True:
            pair = torch.load(self.files[self._below(len(self.files))], mmap=True)
            if self.select is not None:
                pair = self.select(pair)
            images, velocity = pair["images"].float(), pair["velocity"].float()
            for axis in range(3):
                if self._below(2):
                    images, velocity = _flipped(images, velocity, axis)
            for axis in range(3):
                side = min(self.side, images.shape[axis + 1])
                start = self._below((images.shape[axis + 1] - side) // 2 + 1)
                images = images.narrow(axis + 1, 2 * start, side)
                velocity = velocity.narrow(axis + 2, start, side // 2)
            yield images[None], velocity[None, ..., ::thinned, ::thinned, ::thinned] / thinned

    def _below(self, number: int) -> int:
        return int(torch.randint(number, (), generator=self.generator))


def _flipped(images: Tensor, velocity: Tensor, axis: int) -> Pair:
    """Flip an axis with an even number of voxels: the lattice then lies on what were its odd voxels."""
    number = velocity.shape[axis + 2]
    following = torch.arange(1, number + 1).clamp_max(number - 1)
    flipped = (0.5 * (velocity + velocity.index_select(axis + 2, following))).flip(axis + 2)
    flipped[:, axis] *= -1
    return images.flip(axis + 1), flipped


Loss = Callable[[Tensor, Tensor, Alignment], Tensor]  # arguments: the network's output, the refined velocities


def _distance(parameters: Tensor, velocity: Tensor, alignment: Alignment) -> Tensor:
    """Compute the mean distance between predicted and refined velocities, apart from shared motion."""
    predicted, _ = split_parameters(parameters, velocity.shape[1])
    difference = alignment.constrain_values(predicted - velocity)
    return (difference.square().sum(dim=2) + _ROUNDED_VOXELS**2).sqrt().mean()


def _negative_log_likelihood(parameters: Tensor, velocity: Tensor, alignment: Alignment) -> Tensor:
    """Compute the negative log likelihood of refined velocities under the predicted posterior, nats per component."""
    timepoints = velocity.shape[1]
    predicted, log_variance = split_parameters(parameters, timepoints)
    difference = alignment.constrain_values(predicted - velocity)
    unbiased = difference.square() * (timepoints / (timepoints - 1))  # the mean over K has been removed
    return 0.5 * (log_variance + unbiased * (-log_variance).exp()).mean()


def _trainer(network: nn.Module, alignment: Alignment, part: str, loss: Loss, iterations: int, rate: float) -> Engine:
    """Make an engine that trains the parameters of ``network`` whose names match the pattern ``part``."""
    parameters = [values for name, values in network.named_parameters() if re.match(part, name)]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    factor = partial(warmup_and_cosine, iterations=iterations, warmup=min(50, iterations // 10))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def step(engine: Engine, batch: Pair) -> float:
        images, velocity = batch
        optimizer.zero_grad()
        value = loss(network(images), velocity, alignment)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        return value.item()

    trainer = Engine(step)
    RunningAverage(output_transform=float, alpha=1 - 1 / _LOG_INTERVAL).attach(trainer, "loss")
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(every=_LOG_INTERVAL),
        lambda: print(f"{trainer.state.iteration} iterations, {trainer.state.metrics['loss']:.4f}", flush=True),
    )
    return trainer


def _save(weights: Mapping[str, Tensor], file: Path) -> None:
    with atomic_file(file) as path:
        torch.save({name: values.half() for name, values in weights.items()}, path)


def distil(
    network: nn.Module, alignment: Alignment, patches: Iterator[Pair], iterations: int, rate: float, file: Path
) -> None:
    """Train the mean of the posterior to predict ``(images, velocity)``, then its variance, and write the weights.

    The weights for the mean are averaged; the variance is that of the refined velocities about this mean.
    """
    trainer = _trainer(network, alignment, "(?!variance_head)", _distance, iterations, rate)
    average = EMAHandler(network, _AVERAGE, momentum_warmup=0.1, warmup_iters=iterations // 4)
    average.attach(trainer)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(every=_SAVE_INTERVAL), lambda: _save(average.ema_model.state_dict(), file)
    )
    network.train()
    trainer.run(patches, max_epochs=1, epoch_length=iterations)
    fit_variance(average.ema_model, alignment, patches, iterations // 10, 10 * rate, file)


def _noisier(patches: Iterator[Pair]) -> Iterator[Pair]:
    """Add noise of a random standard deviation to the images of each patch."""
    generator = torch.Generator().manual_seed(0)
    for images, velocity in patches:
        deviation = _MOST_NOISE * torch.rand((), generator=generator)
        yield images + deviation * torch.randn(images.shape, generator=generator), velocity


def fit_variance(
    network: nn.Module, alignment: Alignment, patches: Iterator[Pair], iterations: int, rate: float, file: Path
) -> None:
    """Train the variance of the posterior to be that of the refined velocities about its mean, and write the weights.

    As prediction and refinement of the same images share the errors due to their noise, the prediction gets noisier
    images.
    """
    network.requires_grad_(False).get_submodule("variance_head").requires_grad_()
    trainer = _trainer(network, alignment, "variance_head", _negative_log_likelihood, iterations, rate)
    trainer.run(_noisier(patches), max_epochs=1, epoch_length=iterations)
    _save(network.state_dict(), file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overlay", action="append", default=[], help="of the training's config")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="setting of the config")
    parser.add_argument("--dataset", help="folder of training series; without it, phantoms")
    parser.add_argument("--weights", required=True, help="initial weights")
    steps = parser.add_subparsers(dest="step", required=True)
    refine = steps.add_parser("refine")
    refine.add_argument("folder", type=Path)
    refine.add_argument("--first", type=int, default=0, help="random seed of the first series")
    refine.add_argument("--series", type=int, default=256)
    refine.add_argument("--effort", action="append", default=[], help="overlay of the inference's config")
    for name, iterations, rate in (("train", 3600, 5e-4), ("variance", 360, 5e-3)):
        train = steps.add_parser(name)
        train.add_argument("file", type=Path)
        train.add_argument("folder", type=Path, nargs="+")
        train.add_argument("--iterations", type=int, default=iterations)
        train.add_argument("--learning-rate", type=float, default=rate)
        train.add_argument("--patch", type=int, default=48, help="voxels along each axis of a patch, a multiple of 16")
    args = parser.parse_args()
    folder = args.folder if args.step == "refine" else args.file.parent
    run = checked_run("train", args.overlay, args.set, dataset_dir=args.dataset, output_dir=str(folder))
    config = parsed_config(*run)
    part = config.get_parsed_content
    network = part("network")
    load_weights(network, args.weights)
    if args.step == "refine":
        args.folder.mkdir(parents=True, exist_ok=True)
        refine_series(args.folder, config, range(args.first, args.first + args.series), args.effort)
        return
    files = [file for folder in args.folder for file in sorted(folder.glob("*.pt"))]
    kind = RandIntervald if part("timepoints_in_order") else RandTimepointsd
    select = kind(("images", "velocity"), part("timepoints_least"), part("timepoints_most")).set_random_state(0)
    patches = Patches(files, args.patch, network.stride, select)
    fit = distil if args.step == "train" else fit_variance
    fit(network, part("alignment"), iter(patches), args.iterations, args.learning_rate, args.file)


if __name__ == "__main__":
    main()
