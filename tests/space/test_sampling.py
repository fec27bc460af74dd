import pytest
import torch

from groupmorph_monai.space import (
    AffineFlow,
    DisplacementField,
    Lattice,
    MultiGaussian,
    VelocityField,
    compose,
    sample,
    voxel_grid,
)
from groupmorph_monai.space.affine import apply_affine
from groupmorph_monai.space.cosine_transform import CosineTransform
from groupmorph_monai.space.sampling import full_precision

SIZE = (7, 9, 6)


def switches():
    """Return PyTorch's settings for the precision of float32 matrix products, on CUDA and on the CPU."""
    matmul, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    return matmul.allow_tf32, torch.get_float32_matmul_precision(), matmul.fp32_precision, cpu.fp32_precision


@pytest.fixture
def precision():
    yield
    torch.set_float32_matmul_precision("highest")


def test_half_precision_is_widened_however_it_is_handed_in():
    kinds = full_precision(lambda a, b: (a.dtype, b.dtype))
    half, bfloat = torch.zeros(1, dtype=torch.float16), torch.zeros(1, dtype=torch.bfloat16)
    assert kinds(half, bfloat) == kinds(half, b=bfloat) == kinds(a=half, b=bfloat) == (torch.float32,) * 2


@pytest.mark.parametrize("allow", ["tf32", "high", "medium", "highest"])
def test_tf32_is_off_inside_full_precision_and_restored_after(allow, precision):
    if allow == "tf32":
        torch.backends.cuda.matmul.allow_tf32 = True
    else:
        torch.set_float32_matmul_precision(allow)
    before, inside = switches(), []

    @full_precision
    def observe(fail):
        inside.append((*switches()[:2], torch.is_autocast_enabled("cpu")))
        if fail:
            raise ValueError("as asked for")

    with torch.autocast("cpu", torch.bfloat16):
        observe(False)
        assert torch.is_autocast_enabled("cpu")
        with pytest.raises(ValueError, match="as asked"):
            observe(True)
    assert inside == [(False, "highest", False)] * 2
    assert switches() == before


def test_tf32_is_off_where_it_was_switched_on_for_one_backend(precision):
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    covered = full_precision(lambda: torch.backends.cuda.matmul.fp32_precision)()
    assert covered == "ieee" and torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_tf32_is_off_where_pytorch_has_one_switch_for_all(precision, monkeypatch):
    # PyTorch 2.8, the oldest version that MONAI supports, has no separate switch for each backend.
    torch.set_float32_matmul_precision("high")
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cuda, "matmul", object())
        patch.delattr(type(torch.backends.mkldnn), "matmul")
        assert full_precision(torch.get_float32_matmul_precision)() == "highest"
    assert torch.get_float32_matmul_precision() == "high"


def ramp(size, kind=VelocityField, slope=1.0):
    return kind.on_voxels(slope * voxel_grid(size, torch.empty(0))[None, None])


GEOMETRY = {
    "upsampling": lambda: VelocityField(ramp((80, 3, 3)).values, Lattice((160, 5, 5), 2)).at(1).values,
    "cosine transform": lambda: CosineTransform((160, 4, 4), torch.empty(0))(voxel_grid((160, 4, 4), torch.empty(0))),
    "affine map": lambda: apply_affine(torch.tensor(AFFINE), voxel_grid((160, 4, 4), torch.empty(0))),
    "composition": lambda: compose(*[ramp((160, 4, 4), DisplacementField, 0.3)] * 2).values,
    "affine flow": lambda: AffineFlow()(ramp((160, 4, 4), slope=0.01)).values,
    "momenta": lambda: MultiGaussian()(voxel_grid((160, 4, 4), torch.empty(0))),
}
AFFINE = [[1.01, 0.02, 0.0, 3.1], [0.0, 0.97, 0.1, -2.2], [0.05, 0.0, 1.0, 0.7], [0.0, 0.0, 0.0, 1.0]]


@pytest.mark.parametrize("name", GEOMETRY)
def test_coordinates_are_the_same_under_autocast(name):
    expected = GEOMETRY[name]()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(GEOMETRY[name](), expected)
    assert expected.abs().max() > 1


def test_sample_reads_a_ramp_at_any_point():
    grid = voxel_grid(SIZE, torch.empty(0, dtype=torch.float64))[None]
    points = torch.rand(1, 3, 5, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * (
        torch.tensor(SIZE, dtype=torch.float64) - 1
    ).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(sample(grid, points), points, atol=1e-12, rtol=0)
