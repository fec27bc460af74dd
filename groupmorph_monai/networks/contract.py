"""The interface between the networks of this package and the inferers."""

from collections.abc import Mapping
from typing import Any, Protocol, cast

from torch import Tensor, nn


class PosteriorNetwork(Protocol):
    """Network that computes the parameters of a posterior of z in one tensor, see `split_parameters`.

    Args:
        stride: spacing of the field of z, in voxels of the images.
        multiple: the borders of sliding windows must lie on multiples of this number of voxels.
    """

    stride: int
    multiple: int

    def decode(self, z: Tensor, images: Tensor) -> Tensor:
        """Return the field of z ``(B, K, C, *S_z)`` for images ``(B, K, *S)``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """See `torch.nn.Module.state_dict`."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object:
        """See `torch.nn.Module.load_state_dict`."""
        ...


def unwrapped(network: nn.Module) -> PosteriorNetwork:
    """Return the network inside PyTorch's DistributedDataParallel, or the network itself if it is not wrapped."""
    return cast(PosteriorNetwork, getattr(network, "module", network))
