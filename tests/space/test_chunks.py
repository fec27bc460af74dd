import torch

from groupmorph_monai.space.chunks import all_at_once, total


def test_the_total_does_not_depend_on_the_chunks():
    x = torch.arange(12.0).view(4, 3)
    for chunks in (all_at_once(4), [slice(0, 3), slice(3, 4)]):
        torch.testing.assert_close(total(x[c].sum(dim=0) for c in chunks), x.sum(dim=0))
