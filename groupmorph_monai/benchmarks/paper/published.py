"""Published numbers of the paper, for comparison with measured ones."""

COLUMNS = (
    "model",
    "time (s)",
    "breast RMSE",
    "breast NMI",
    "breast % J < 0",
    "4DCT RMSE",
    "4DCT NMI",
    "4DCT distance (mm)",
    "4DCT % J < 0",
)

# van der Ouderaa et al. 2020, Table 1.
TABLE_1 = (
    ("No registration", None, 24.15, 0.24, None, 63.39, 0.47, "1.83 ± 2.24", None),
    ("Elastix", 652, 23.42, 0.25, 0, 36.84, 0.49, "1.09 ± 1.30", 0),
    ("VoxelMorph", 5, 22.43, 0.26, 3.31e-2, 28.42, 0.50, "1.18 ± 1.33", 4.32e-6),
    ("VoxelMorph-diff", 5, 22.12, 0.26, 1.55e-4, 25.37, 0.51, "1.12 ± 1.33", 7.79e-7),
    ("All-to-one GroupMorph", 2, 21.97, 0.28, 4.20e-5, 27.11, 0.51, "1.16 ± 1.36", 3.05e-5),
    ("All-to-one GroupMorph-diff", 2, 22.00, 0.27, 1.60e-5, 25.26, 0.51, "1.08 ± 1.35", 2.60e-7),
    ("All-moving GroupMorph", 2, 21.47, 0.32, 2.00e-4, 23.15, 0.53, "1.39 ± 1.32", 4.98e-6),
    ("All-moving GroupMorph-diff", 2, 21.57, 0.32, 1.90e-4, 22.09, 0.54, "1.52 ± 1.34", 9.74e-7),
)

COMPARABLE = (
    "Compare the order of the rows and the gain over no registration, not the values: RMSE depends on the scans' "
    "units, NMI on the bins, folding on the counting method, and the paper's times are for a GPU for networks (GeForce "
    "RTX 2080) and for 20 cores for Elastix. Only millimetres are comparable, and only for DIR-Lab case 1 with the "
    "same landmark convention."
)
