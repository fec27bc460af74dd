import csv

import numpy as np

from groupmorph_monai.benchmarks.paper.cells import Cell
from groupmorph_monai.benchmarks.paper.methods import MethodDescription
from groupmorph_monai.benchmarks.paper.page import expectations, write_page

ROWS = {
    "elastix-breast": MethodDescription("Elastix, breast"),
    "ants-mi": MethodDescription("ANTs SyN, MI"),
    "voxelmorph-diff": MethodDescription("VoxelMorph-diff", ours=True),
    "groupmorph-all-diff": MethodDescription("All-moving GroupMorph-diff", group_wise=True, ours=True),
    "set-refined": MethodDescription("GroupMorph-set, refined", group_wise=True, ours=True),
}


def done(method, mm, seconds, **numbers):
    picture = np.linspace(-1, 1, 16).reshape(4, 4)
    arrays = {"subtraction": picture, "jacobian": 1 + picture / 4, "landmark_quantiles_mm": np.linspace(0, 2 * mm, 201)}
    columns = {"landmarks_mm_mean": mm, "landmarks_mm_sd": 0.5, "seconds": seconds, "folding_percent": 0.0, **numbers}
    return Cell("phantom 1", method, "ok", columns, arrays)


def test_the_page_holds_every_row_and_says_why_one_is_empty(tmp_path):
    cells = [
        done("none", 1.8341, None),
        done("elastix-breast", 1.0, 652.0),
        Cell("phantom 1", "ants-mi", "not installed: ants; pip install 'groupmorph-monai[peers]'", {}, {}),
        done("set-refined", 0.25, 20.0),
    ]
    scaling = [{"method": "set-refined", "axis": "voxels", "at": 10.0**n, "seconds": 10.0**n} for n in (3, 4)]
    page = write_page(cells, ROWS, tmp_path, "set-refined", {"data": "phantom"}, scaling).read_text(encoding="utf-8")
    assert "| No registration | - | - | - | - | - | 1.83 ± 0.5 |" in page
    assert "| ANTs SyN, MI | not installed: ants; pip install 'groupmorph-monai[peers]' |" in page
    assert "| Elastix, breast | landmarks mm | 1 | 0.75 | - | - | - |" in page
    assert "| All-moving GroupMorph-diff | 2 | 21.6 | 0.32 |" in page and "1.52 ± 1.34" in page  # the paper's own
    with open(tmp_path / "paper.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["none", "elastix-breast", "ants-mi", "set-refined"]
    assert rows[1]["landmarks_mm_mean"] == "1.0" and rows[2]["status"].startswith("not installed")
    expected = {"paper.md", "paper.csv", "paper_differences.csv"}
    expected |= {f"paper_{name}.png" for name in ("slices", "landmarks", "scaling")}
    assert {file.name for file in tmp_path.iterdir()} == expected


def test_expectations_hold_or_do_not():
    table = {
        "elastix-breast": {"series": 1, "landmarks_mm_mean": 1.0, "seconds": 100.0},
        "voxelmorph-diff": {"series": 1, "rmse": 22.0, "nmi": 0.5, "folding_percent": 0.01},
        "groupmorph-all-diff": {"series": 1, "rmse": 21.0, "nmi": 0.4, "folding_percent": 0.0},
        "set-refined": {"series": 1, "landmarks_mm_mean": 0.5, "seconds": 20.0, "rmse": 1.0, "nmi": 1.0},
    }
    rmse, nmi, folds, nearer, faster = expectations(table, ROWS)
    assert rmse.startswith("Holds") and nmi.startswith("Does not hold") and folds.startswith("Does not hold")
    assert nearer.startswith("Holds") and faster.startswith("Does not hold") and "1 / 5.0" in faster
