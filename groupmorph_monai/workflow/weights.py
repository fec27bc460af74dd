"""Load trained weights from a file into a network."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from ..data.reading.signature import is_lfs_pointer
from ..errors import InputError
from ..networks.contract import unwrapped

_CURE = "use weights written by 'groupmorph train', such as model_best.pt"


def read_weights(path: str | Path, device: torch.device | str = "cpu") -> Mapping[str, Tensor]:
    """Read the weights of a network from a file with a state dict, or with a checkpoint that has one as ``network``.

    No code in the file is executed, as only tensors and plain containers are unpickled (``weights_only``).

    Args:
        path: the file.
        device: device to load the tensors to.

    Returns:
        The state dict.

    Raises:
        InputError: If the file has other content, a value that is not finite, or zeros alone.
    """
    if not Path(path).is_file():
        raise _missing(Path(path))
    try:
        content = load_tensors(path, device)
    except ValueError as error:
        raise InputError(f"weights: {path}: expected trained weights, got {error}; {_CURE}") from error
    state = content.get("network", content) if isinstance(content, Mapping) else content
    tensors_by_name = isinstance(state, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    )
    if not tensors_by_name or not state:
        raise InputError(
            f"weights: {path}: expected a state dict of tensors, got {type(content).__name__} without one; {_CURE}"
        )
    for name, value in state.items():
        _check_numbers(value, name, path)
    kernels = [value for value in state.values() if value.ndim > 1]
    if kernels and not any(map(torch.any, kernels)):
        raise InputError(
            f"weights: {path}: expected trained weights, got kernels that are all zero, with which a network ignores "
            f"the images; {_CURE}"
        )
    return state


def _check_numbers(value: Tensor, name: str, path: str | Path) -> None:
    """Check that a tensor holds finite real numbers."""
    # Only counters, such as those of batch normalisation, are whole numbers.
    real = value.is_floating_point() or (value.ndim == 0 and not value.is_complex())
    dense = value.layout == torch.strided
    if value.is_meta or not dense or not real:
        kind = "a tensor without data" if value.is_meta else str(value.dtype if dense else value.layout)
        raise InputError(
            f"weights: {path}: expected real numbers, got {kind.removeprefix('torch.')} in {name}; {_CURE}"
        )
    if value.is_floating_point() and not value.isfinite().all():
        count = int((~value.isfinite()).sum())
        raise InputError(
            f"weights: {path}: expected finite numbers, got {count} NaN or infinite ones in {name}; the training "
            "diverged: use an earlier checkpoint, or train with a smaller learning_rate"
        )


def load_tensors(path: str | Path, device: torch.device | str = "cpu") -> Any:
    """Load a file that `torch.save` wrote, without executing code in it.

    Raises:
        ValueError: If it cannot be loaded; the message describes the content of the file.
    """
    try:
        _check_archive(path)
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # zipfile, pickle and PyTorch raise many types
        raise ValueError(_content_of(path, error)) from error


def _check_archive(path: str | Path) -> None:
    """Compare the checksums, which PyTorch ignores.

    Raises:
        BadZipFile: If the archive is damaged.
        ValueError: If a checksum is wrong.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"wrong checksum of {damaged}")


def _missing(file: Path) -> InputError:
    """Make the error for a missing file; for a model of the bundle without shipped weights, it says how to train it."""
    if file.is_dir():
        return InputError(f"weights: {file}: expected a file, got a folder; use a file in it, such as model_best.pt")
    if file.exists():
        return InputError(f"weights: {file}: expected a file, got a pipe or device; {_CURE}")
    overlay = file.parent.parent / "configs" / "models" / f"{file.stem}.yaml"
    if file.parent.name != "models" or not overlay.is_file():
        return InputError(f"weights: {file}: expected a file, found none; check the path")
    return InputError(
        f"weights: {file}: no weights ship for models/{file.stem}; train them with groupmorph train --phantoms "
        f"--overlay models/{file.stem} --output DIR, see the recipes in {file.parent.parent / 'docs' / 'models.md'}, "
        "and add --weights DIR/model_best.pt"
    )


def _content_of(path: str | Path, error: Exception) -> str:
    """Describe a file that PyTorch could not load."""
    size = Path(path).stat().st_size
    if size == 0:
        return "an empty file"
    if is_lfs_pointer(path):
        return "a pointer of Git LFS, whose file 'git lfs pull' fetches"
    with open(path, "rb") as file:
        head = file.read(4)
    archive, pickled = head == b"PK\x03\x04", head[:1] == b"\x80"
    reason = str(error).strip().splitlines()
    if "TorchScript" in str(error):
        return "a TorchScript archive"
    if (archive or pickled) and ("weights_only" in str(error).lower() or "Unsupported" in str(error)):
        return "a pickle of objects other than tensors, which is not loaded as it could run code"
    if not archive and not pickled:
        return f"a different file of {size} bytes"
    return f"a {'damaged' if archive else 'different'} file of {size} bytes ({reason[0][:80] if reason else error!r})"


def load_weights(network: nn.Module, path: str | Path, device: torch.device | str = "cpu") -> None:
    """Load trained weights into a network.

    Args:
        network: network with parameters of the same names and shapes; may be wrapped for distributed training.
        path: file, as for `read_weights`.
        device: device to load the tensors to.

    Raises:
        InputError: If `read_weights` refuses the file.
        RuntimeError: If the weights are those of another network.
    """
    unwrapped(network).load_state_dict(read_weights(path, device))


class WeightsLoader:
    """Handler that loads weights into a network when an engine starts; arguments as for `load_weights`."""

    def __init__(self, network: nn.Module, path: str, device: torch.device | str = "cpu"):
        self.network, self.path, self.device = network, path, device

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        load_weights(self.network, self.path, self.device)
