"""Files in DIR-Lab's layout, generated here, as its data may not be redistributed."""

import csv

import numpy as np
import pytest
import torch
from json_files import write_json

from groupmorph_monai.apps.command_line import main
from groupmorph_monai.benchmarks.paper.cases import cases
from groupmorph_monai.data import LoadSeriesd, read_series, series_items
from groupmorph_monai.data.reading import dirlab
from groupmorph_monai.data.reading.dirlab import (
    DIRLAB_CASES,
    DIRLAB_PHASES,
    is_dirlab,
    read_dirlab,
    read_dirlab_landmarks,
)
from groupmorph_monai.errors import InputError
from groupmorph_monai.space.grid import Grid

SIZES = {
    1: ((26, 22, 12), (1.0, 1.2, 2.5), 0.0),
    2: ((64, 60, 10), (0.9, 1.1, 2.5), 0.0),
    8: ((26, 24, 12), (1, 1, 2), 0.0),
}
NAMES = {1: ("Case1Pack", "case1_{}_s.img", "Case1_300_{}_xyz.txt"), 2: ("Case2Pack", "case2_{}-ssm.img", "")}
NAMES[8] = ("Case8Deploy", "case8_{}.img", "case8_dirLab300_{}_xyz.txt")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Describe small cases, the second of which is cropped."""
    monkeypatch.setattr(dirlab, "DIRLAB_CASES", SIZES)
    monkeypatch.setattr(dirlab, "_IN_PLANE_VOXELS", 32)


def stored(x, y, z, k):
    """Return the value of voxel (x, y, z) of phase k, counted from 1; all values differ."""
    return (x + 70 * y + 4300 * (z + k)) % 30011


def write_case(folder, case):
    """Write volumes of `stored` values and landmarks that move up by one voxel per phase."""
    pack, image, extremes = NAMES[case]
    size = SIZES[case][0]
    for sub in ("Images", "Sampled4D", "extremePhases"):
        (folder / pack / sub).mkdir(parents=True)
    x, y, z = np.meshgrid(*[np.arange(1, n + 1) for n in size], indexing="ij")
    first = np.random.default_rng(case).integers((4, 5, 7), (24, 20, 11), size=(300, 3))
    if case == 2:
        first[:, :2] += (30, 8)
    for k, phase in enumerate((*DIRLAB_PHASES, "T60")):
        values = stored(x, y, z, k)
        (folder / pack / "Images" / image.format(phase)).write_bytes(values.T.astype("<i2").tobytes())
        points = first - (0, 0, k)
        lines = "".join(f"{a}\t{b}\t{c} \r\n" for a, b, c in points)
        if k < 6:
            short = "".join(lines.splitlines(keepends=True)[:75])
            (folder / pack / "Sampled4D" / f"case{case}_4D-75_{phase}.txt").write_text(short, encoding="utf-8")
        if extremes and phase in ("T00", "T50"):
            (folder / pack / "extremePhases" / extremes.format(phase)).write_text(lines, encoding="utf-8")
    return folder / pack, first


@pytest.fixture
def pack(tmp_path):
    return write_case(tmp_path, 1)[0]


@pytest.mark.parametrize("case", [1, 2, 8])
def test_a_landmark_points_at_its_voxel(tmp_path, case):
    pack, first = write_case(tmp_path, case)
    series, points_mm = read_series(str(pack)), read_dirlab_landmarks(pack)
    assert is_dirlab(pack) and len(series.frames) == 6 and points_mm.shape == (6, 75, 3)
    size = SIZES[case][0]
    assert series.frames[0].data.shape == tuple(min(n, 32) for n in size[:2]) + size[2:]
    for k, (frame, points) in enumerate(zip(series.frames, points_mm)):
        voxels = frame.grid.voxels(torch.as_tensor(points)).numpy()
        np.testing.assert_allclose(voxels, voxels.round(), atol=1e-4)
        expected = stored(*(first[:75] - (0, 0, k)).T, k) - 1024
        np.testing.assert_array_equal(frame.data[tuple(voxels.round().astype(int).T)], expected)


def test_axes_run_to_the_left_the_back_and_the_feet_from_the_first_voxel(tmp_path):
    pack, first = write_case(tmp_path, 2)
    spacing = np.array(SIZES[2][1])
    np.testing.assert_allclose(read_dirlab_landmarks(pack)[0], -(first[:75] - 1) * spacing)
    frame = read_dirlab(pack)[3]
    data, affine = frame.data, frame.affine
    corner = -affine[:2, 3] / spacing[:2]
    np.testing.assert_allclose(affine[:3, :3], np.diag(-spacing))
    np.testing.assert_allclose(corner, corner.round(), atol=1e-9)
    x, y = corner.round() + 1
    assert data[0, 0, 0] == stored(x, y, 1, 3) - 1024


def test_300_landmarks_are_of_the_two_extremes(tmp_path):
    for case in (1, 8):
        pack, first = write_case(tmp_path, case)
        points = read_dirlab_landmarks(pack, 300)
        assert points.shape == (2, 300, 3)
        np.testing.assert_allclose(points[1] - points[0], np.tile([0, 0, 5 * SIZES[case][1][2]], (300, 1)))


def test_cases_have_the_published_sizes(monkeypatch):
    monkeypatch.undo()
    assert sorted(DIRLAB_CASES) == list(range(1, 11))
    # Bytes of the distributed volumes of cases 6, 7 and 10.
    for case, expected in ((6, 67_108_864), (7, 71_303_168), (10, 62_914_560)):
        assert 2 * np.prod(DIRLAB_CASES[case][0]) == expected
    # GroupMorph, Section 3: 1.04 x 1.04 x 2.5 mm on average.
    assert np.mean([spacing for _, spacing, _ in DIRLAB_CASES.values()], axis=0) == pytest.approx(
        (1.04, 1.04, 2.5), abs=5e-3
    )


def test_mistakes_are_named_in_one_line(pack, capsys):
    image, points = pack / "Images" / "case1_T20_s.img", pack / "Sampled4D" / "case1_4D-75_T30.txt"
    whole, lines = image.read_bytes(), points.read_text(encoding="utf-8")

    def refused(*parts):
        with pytest.raises(InputError) as error:
            LoadSeriesd()({"image": str(pack), "landmarks": [str(pack)]})
        assert all(part in str(error.value) for part in parts), str(error.value)
        assert "\n" not in str(error.value)

    image.write_bytes(whole[:-2])
    refused(str(image), "13728 bytes", "26 x 22 x 12", "13726")
    image.unlink()
    refused(str(pack), "T20", "none")
    assert main(["register", str(pack), "--output", str(pack.parent / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    image.write_bytes(whole)
    (pack / "Images" / "case1_T20.img").write_bytes(whole)
    refused("T20", "case1_T20.img, case1_T20_s.img")
    (pack / "Images" / "case1_T20.img").unlink()

    points.write_text(lines.replace(lines.splitlines()[1], "3 23 4", 1), encoding="utf-8")
    refused(str(points), "line 2", "[3.0, 23.0, 4.0]", "26 x 22 x 12")
    points.write_text(lines.replace(lines.splitlines()[1], "0 3 4", 1), encoding="utf-8")
    refused(str(points), "line 2")
    points.write_text("".join(lines.splitlines(keepends=True)[:74]), encoding="utf-8")
    refused(str(points), "75 points", "(74, 3)")
    points.write_text("a b c\n", encoding="utf-8")
    refused(str(points), "three numbers")
    points.unlink()
    refused(str(pack), "T30", "none")


def test_other_folders_are_no_cases(tmp_path):
    (tmp_path / "Case3Pack").mkdir()
    (tmp_path / "Case31Pack" / "Images").mkdir(parents=True)
    assert not is_dirlab(tmp_path / "Case3Pack") and not is_dirlab(tmp_path / "Case31Pack")
    for folder in ("Case31Pack", "Case1Pack"):
        with pytest.raises(InputError, match="Case1Pack to Case10Pack"):
            read_dirlab(tmp_path / folder)


def test_one_case_is_reported_on_and_the_others_train(tmp_path):
    for case in (1, 2, 8):
        write_case(tmp_path, case)
    names = [item["name"] for item in series_items(str(tmp_path), "training", [], held_out="Case1Pack")]
    assert names == ["Case2Pack", "Case8Deploy"]
    (item,) = series_items(str(tmp_path), "validation", [], held_out="Case1Pack")
    assert item == {
        "name": "Case1Pack",
        "image": str(tmp_path / "Case1Pack"),
        "landmarks": [str(tmp_path / "Case1Pack")],
    }
    with pytest.raises(InputError, match="held_out: .*Case1Pack, Case2Pack, Case8Deploy, got 'Case3Pack'"):
        series_items(str(tmp_path), "training", [], held_out="Case3Pack")
    write_json(tmp_path / "dataset.json", {"training": [{"image": "Case2Pack", "landmarks": ["Case2Pack"]}]})
    (item,) = series_items(str(tmp_path), "training", [])
    assert LoadSeriesd()(item)["landmarks"].shape == (6, 75, 3)
    with pytest.raises(InputError, match="held_out"):
        series_items(str(tmp_path), "training", [], held_out="Case1Pack")


def test_cases_to_compare_methods_on_have_landmarks_in_mm(tmp_path):
    write_case(tmp_path, 1)
    write_case(tmp_path, 8)
    first, last = cases(str(tmp_path))
    assert (first.name, last.name) == ("Case1Pack", "Case8Deploy")
    case = first.load()
    assert case["image"].shape == (6, 26, 22, 12)
    # The axes of the grid point to the right, anterior and superior; the values are those of the files.
    landmarks_mm = case["landmarks_mm"].double()
    i, j, k = Grid(case["image"].shape[1:], case["affine"]).voxels(landmarks_mm[2]).round().long().T
    series = read_series(str(tmp_path / "Case1Pack"))
    voxels = series.frames[2].grid.voxels(landmarks_mm[2]).round().long().T
    np.testing.assert_array_equal(case["image"][2][i, j, k], series.frames[2].data[tuple(voxels)])
    apart = (landmarks_mm[5] - landmarks_mm[0]).norm(dim=1)
    torch.testing.assert_close(apart, torch.full((75,), 12.5).double())


@pytest.mark.slow
def test_a_network_trains_on_all_cases_but_one_and_is_evaluated_on_that(tmp_path):
    for case in (1, 2, 8):
        write_case(tmp_path / "data", case)
    small = ["patch_size_voxels=[16, 16, 16]", "initial_alignment=none", "spacing_mm=2.0", "iterations_per_epoch=2"]
    common = ["--dataset", str(tmp_path / "data"), "--overlay", "data/dirlab"]
    settings = [word for setting in small for word in ("--set", setting)]
    assert main(["train", *common, "--output", str(tmp_path / "run"), "--iterations", "2", *settings]) == 0
    weights = str(tmp_path / "run" / "model_best.pt")
    output = str(tmp_path / "report")
    settings = ["--set", "split=validation", "--set", "initial_alignment=none", "--set", "refinement_iterations=[1]"]
    settings += ["--set", "refinement_levels_voxels=[4]"]
    assert main(["evaluate", *common, "--output", output, "--weights", weights, *settings]) == 0
    rows = list(csv.DictReader((tmp_path / "report" / "metrics.csv").open(encoding="utf-8")))
    (row,) = [row for row in rows if row["series"].startswith("Case")]
    assert float(row["rmse_before"]) > 0.01
    # Phases i and j are 2.5 mm |i - j| apart: 2.5 * 70 / 30 on average over ordered pairs.
    assert row["series"] == "Case1Pack" and float(row["landmark_before_mm_mean"]) == pytest.approx(
        2.5 * 70 / 30, abs=1e-3
    )
