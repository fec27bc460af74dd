"""Methods of GroupMorph's Table 1."""

__all__ = ["METHODS"]

METHODS = {  # name on the command line: title in the table
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
