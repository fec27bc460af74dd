"""Weights of a `GroupVAE` that predicts the velocities that the refinement finds, without labels (distillation).

``python -m experiments.distillation FOLDER WEIGHTS``: the training phantoms of ``models/groupmorph`` are refined under
the default likelihood and prior, all-to-one, and from WEIGHTS the network is trained to predict their velocities in
patches. FOLDER keeps the velocities; ``FOLDER/distilled.pt`` are the weights, averaged over the last iterations.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from monai.bundle import ConfigParser
from monai.transforms import Compose
from torch import Tensor, nn

from groupmorph_monai.apps.configs import config_files
from groupmorph_monai.data.writing.output_folder import whole_file
from groupmorph_monai.probability import split_parameters
from groupmorph_monai.workflow import RegistrationInferer, warmup_and_cosine
from groupmorph_monai.workflow.parsed_config import parsed_config
from groupmorph_monai.workflow.weights import load_weights

__all__ = ["Patches", "distil", "refined_velocities"]

Pair = tuple[Tensor, Tensor]  # images (K, *S), and velocities (K, 3, *S / 2) on every second voxel
_OVERLAYS = ("data/phantom_small", "models/groupmorph", "modes/all_to_one", "data/phantom_published")
_AVERAGE = 0.002  # share of the newest weights in the average
_ROUNDED_VOXELS = 0.05  # of the lattice: where the distance is as flat as its square
_LOG_INTERVAL = 50


def refined_velocities(folder: Path, config: ConfigParser, network: nn.Module, number: int) -> list[Pair]:
    """Refine the first ``number`` training phantoms of ``config``; ``folder`` keeps them for the next run."""
    part = config.get_parsed_content
    inference = parsed_config(config_files("inference", ["modes/all_to_one"]), {"stationary_parts": False})
    default = inference.get_parsed_content
    inferer = RegistrationInferer(default("alignment"), part("transformation"), refinement=default("refinement"))
    prepare = Compose([part(name) for name in ("clip", "align", "load", "normalise")])
    pairs = []
    for n, phantom in enumerate(part("training_phantoms")[:number]):
        file = folder / f"{n:04d}.pt"
        if not file.exists():
            images = torch.as_tensor(prepare(phantom)["image"])[None]
            velocity = inferer(images, network.eval())["dvf"]
            with whole_file(file) as path:
                torch.save({"images": images[0].half(), "velocity": velocity[0].half()}, path)
        pair = torch.load(file)
        pairs.append((pair["images"], pair["velocity"]))
    return pairs


class Patches:
    """Endless random patches of ``side`` voxels, each axis flipped at random, with a batch axis of length 1."""

    def __init__(self, pairs: Sequence[Pair], side: int, seed: int = 0):
        self.pairs, self.side, self.generator = pairs, side, torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Pair]:
        while True:
            images, velocity = (x.float() for x in self.pairs[self._below(len(self.pairs))])
            for axis in range(3):
                if self._below(2):
                    images, velocity = _flipped(images, velocity, axis)
            for axis in range(3):
                start = self._below((images.shape[axis + 1] - self.side) // 2 + 1)
                images = images.narrow(axis + 1, 2 * start, self.side)
                velocity = velocity.narrow(axis + 2, start, self.side // 2)
            yield images[None], velocity[None]

    def _below(self, number: int) -> int:
        return int(torch.randint(number, (), generator=self.generator))


def _flipped(images: Tensor, velocity: Tensor, axis: int) -> Pair:
    """Flip an axis with an even number of voxels: the lattice then lies on what were its odd voxels."""
    number = velocity.shape[axis + 2]
    following = torch.arange(1, number + 1).clamp_max(number - 1)
    flipped = (0.5 * (velocity + velocity.index_select(axis + 2, following))).flip(axis + 2)
    flipped[:, axis] *= -1
    return images.flip(axis + 1), flipped


def _distance(parameters: Tensor, velocity: Tensor) -> Tensor:
    """Compute the mean distance between predicted and refined velocities, both relative to the first timepoint's."""
    predicted, _ = split_parameters(parameters, velocity.shape[1])
    difference = (predicted - predicted[:, :1]) - (velocity - velocity[:, :1])
    return (difference[:, 1:].square().sum(dim=2) + _ROUNDED_VOXELS**2).sqrt().mean()


def distil(network: nn.Module, patches: Iterator[Pair], iterations: int, learning_rate: float) -> nn.Module:
    """Train the network's mean on ``(images, velocity)``, and return a copy with the averaged weights."""
    parameters = [values for name, values in network.named_parameters() if "variance_head" not in name]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    factor = partial(warmup_and_cosine, iterations=iterations, warmup=min(50, iterations // 10))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def step(engine: Engine, batch: Pair) -> float:
        images, velocity = batch
        optimizer.zero_grad()
        loss = _distance(network(images), velocity)
        loss.backward()  # type: ignore[no-untyped-call]  # of PyTorch
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        return loss.item()

    trainer, average = Engine(step), EMAHandler(network, _AVERAGE, momentum_warmup=0.1, warmup_iters=iterations // 4)
    average.attach(trainer)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(every=_LOG_INTERVAL),
        lambda engine: print(f"{engine.state.iteration} iterations, distance {engine.state.output:.4f}", flush=True),
    )
    network.train()
    trainer.run(patches, max_epochs=1, epoch_length=iterations)
    return average.ema_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--phantoms", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=3600)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--patch", type=int, default=48, help="voxels along each axis of a patch, an even number")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    config = parsed_config(config_files("train", _OVERLAYS), {"phantoms_training": args.phantoms})
    network = config.get_parsed_content("network")
    load_weights(network, args.weights)
    pairs = refined_velocities(args.folder, config, network, args.phantoms)
    torch.manual_seed(0)
    averaged = distil(network, iter(Patches(pairs, args.patch)), args.iterations, args.learning_rate)
    with whole_file(args.folder / "distilled.pt") as path:
        torch.save({name: values.half() for name, values in averaged.state_dict().items()}, path)


if __name__ == "__main__":
    main()
