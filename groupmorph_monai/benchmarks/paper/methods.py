"""Methods of GroupMorph's Table 1."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MethodDescription:
    """Description of a method.

    Args:
        title: title in tables.
        group_wise: whether it registers all timepoints at once.
        ours: whether it belongs to this package.
    """

    title: str
    group_wise: bool = False
    ours: bool = False


_TITLES = {
    "elastix-breast": "Elastix, breast (Par0032)",
    "elastix-default": "Elastix, default",
    "elastix-groupwise": "Elastix, group-wise PCA (Par0047)",
    "ants-mi": "ANTs SyN, MI",
    "ants-cc": "ANTs SyN, CC",
    "greedy": "Greedy, WNCC",
    "demons": "Diffeomorphic demons",
    "convexadam": "ConvexAdam",
    "fireants": "FireANTs",
    "unigradicon": "uniGradICON",
    "voxelmorph": "VoxelMorph",
    "voxelmorph-diff": "VoxelMorph-diff",
    "groupmorph-one": "All-to-one GroupMorph",
    "groupmorph-one-diff": "All-to-one GroupMorph-diff",
    "groupmorph-all": "All-moving GroupMorph",
    "groupmorph-all-diff": "All-moving GroupMorph-diff",
    "set-one-pass": "GroupMorph-set, one pass",
    "set-refined": "GroupMorph-set, refined",
}
_GROUP_WISE, _OURS = ("elastix-groupwise", "groupmorph", "set"), ("voxelmorph", "groupmorph", "set")
METHODS = {  # by name on the command line
    name: MethodDescription(title, group_wise=name.startswith(_GROUP_WISE), ours=name.startswith(_OURS))
    for name, title in _TITLES.items()
}
