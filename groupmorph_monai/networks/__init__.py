"""Networks. ``forward`` maps images to the parameters of the posterior of z, as one tensor; ``decode`` maps z to a
field."""

from .affine_net import AffineNet
from .avsm import MomentumNet
from .group_set_vae import GroupSetVAE
from .group_vae import GroupVAE
from .krebs_cvae import KrebsCVAE

__all__ = ["AffineNet", "GroupSetVAE", "GroupVAE", "KrebsCVAE", "MomentumNet"]
