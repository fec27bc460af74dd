"""Trained weights, from a file into a network."""

from collections.abc import Mapping
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from ..errors import InputError

__all__ = ["WeightsLoader", "read_weights"]

_CURE = "give weights that 'groupmorph train' wrote, such as model_best.pt"


def read_weights(path: str | Path, device: torch.device | str = "cpu") -> Mapping[str, Tensor]:
    """Read a network's weights: a state dict, or a checkpoint that holds one under ``network``.

    A file is never unpickled as code: PyTorch reads tensors and plain containers alone (``weights_only``).

    Raises: InputError where the file holds something else, or a number that is not finite.
    """
    if not Path(path).is_file():
        raise _missing(Path(path))
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # zipfile, pickle and torch each have their own kinds
        raise InputError(f"weights: {path}: expected trained weights, got {_kind_of(path, error)}; {_CURE}") from error
    state = content.get("network", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(
            f"weights: {path}: expected a state dict of tensors, got {type(content).__name__} without one; {_CURE}"
        )
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            number = int((~value.isfinite()).sum())
            raise InputError(
                f"weights: {path}: expected finite numbers, got {number} NaN or infinite ones in {name}; the training "
                "diverged: take an earlier checkpoint, or train with a smaller learning_rate"
            )
    return state


def _missing(file: Path) -> InputError:
    """What to do without ``file``; of the bundle's own models, train one."""
    overlay = file.parent.parent / "configs" / "models" / f"{file.stem}.yaml"
    if file.parent.name != "models" or not overlay.is_file():
        return InputError(f"weights: {file}: expected a file, found none; check the path")
    return InputError(
        f"weights: {file}: no weights ship for models/{file.stem}; train them, groupmorph train --phantoms --overlay "
        f"models/{file.stem} --output DIR, with a recipe of {file.parent.parent / 'docs' / 'models.md'}, and give "
        "--weights DIR/model_best.pt"
    )


def _kind_of(path: str | Path, error: Exception) -> str:
    size = Path(path).stat().st_size
    if size == 0:
        return "an empty file"
    with open(path, "rb") as file:
        archive = file.read(4) == b"PK\x03\x04"
    reason = str(error).strip().splitlines()
    if "TorchScript" in str(error):
        return "a TorchScript archive"
    if "weights_only" in str(error).lower() or "Unsupported" in str(error):
        return "a pickle of other objects than tensors, which is not opened as it could run code"
    return f"a {'damaged' if archive else 'different'} file of {size} bytes ({reason[0][:80] if reason else error!r})"


class WeightsLoader:
    """Load weights into ``network`` before an engine starts.

    Args:
        network: whose names and shapes the weights must have.
        path: file that `read_weights` takes.
        device: to read them to.
    """

    def __init__(self, network: nn.Module, path: str, device: torch.device | str = "cpu"):
        self.network, self.path, self.device = network, path, device

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        network = getattr(self.network, "module", self.network)  # of DistributedDataParallel
        network.load_state_dict(read_weights(self.path, self.device))
