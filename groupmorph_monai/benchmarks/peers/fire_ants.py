"""FireANTs."""

import tempfile

import SimpleITK as sitk  # noqa: N813
import torch
from fireants.io.image import BatchedImages, Image
from fireants.registration.affine import AffineRegistration
from fireants.registration.greedy import GreedyRegistration
from torch import Tensor

from .images import as_array, each_onto_first, in_voxels, spacing_of


def fire_ants(images: Tensor, affine: Tensor) -> Tensor:
    """Register every timepoint to the first like the authors' script for LPBA40 (Jena et al. 2024, "FireANTs:
    adaptive Riemannian optimization for multi-scale diffeomorphic matching"; fireants/scripts/pairwise): affine with
    100, 50, 25 and 20 steps, then greedy diffeomorphic with 200, 100 and 25, both by local correlation in windows of 5
    voxels and Adam, with gradients smoothed over 1 voxel."""
    spacing, device = spacing_of(affine), "cuda" if torch.cuda.is_available() else "cpu"

    def batched(volume: Tensor) -> BatchedImages:
        image = sitk.GetImageFromArray(as_array(volume))
        image.SetSpacing(spacing)
        return BatchedImages([Image(image, device=device)])

    def pair(fixed: Tensor, moving: Tensor) -> Tensor:
        both, common = (
            (batched(fixed), batched(moving)),
            {"loss_type": "cc", "cc_kernel_size": 5, "progress_bar": False},
        )
        linear = AffineRegistration(
            [8, 4, 2, 1], [100, 50, 25, 20], *both, optimizer="Adam", optimizer_lr=3e-4, **common
        )
        linear.optimize()
        deformable = GreedyRegistration(
            [4, 2, 1],
            [200, 100, 25],
            *both,
            deformation_type="compositive",
            optimizer="adam",
            optimizer_lr=0.5,
            smooth_grad_sigma=1,
            init_affine=linear.get_affine_matrix().detach(),
            **common,
        )
        deformable.optimize()
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/warp.nii.gz"
            deformable.save_as_ants_transforms(file)
            return in_voxels(sitk.GetArrayFromImage(sitk.ReadImage(file)), spacing)

    return each_onto_first(images, pair)
