"""`report.html` in headless Chromium: a script moves the controls, presses keys, draws, and reads the pixels."""

import json
from pathlib import Path

import chromium
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium here: apt-get install chromium"),
]
LESION = (200, 900, 600)  # of `shown_page`


@pytest.fixture(scope="module")
def results(shown_page, tmp_path_factory):
    """Run the script in a browser and return its results by name."""
    folder = tmp_path_factory.mktemp("browser")
    script = (Path(__file__).parent / "drive_page.js").read_text(encoding="utf-8")
    page = shown_page.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>")
    (path := folder / "report.html").write_text(page, encoding="utf-8")
    window = chromium.Window(folder / "profile")
    window.open(path)
    window.wait("document.getElementById('results')")
    found = window.run("document.getElementById('results').textContent")
    window.close()
    return json.loads(found)


def near(grey):
    return pytest.approx([grey] * 3, abs=2)


def test_the_time_slider_and_the_mode_choose_the_image(results):
    assert results["error"] is None
    assert results["slice 4, timepoint 0, after"] == near(80)
    assert results["slice 4, timepoint 2, after"] == near(140)
    assert results["slice 4, timepoint 2, before"] == near(110)


def test_the_slice_slider_goes_through_the_volume(results):
    assert results["slice 6, timepoint 0, after"] == near(120)


def test_the_patients_right_is_on_the_left_and_front_and_head_are_up(results):
    assert results["corners"] == {"axial": [True, False], "coronal": [True, False], "sagittal": [True, False]}


def test_swipe_shows_before_on_the_left_and_after_on_the_right(results):
    assert results["swipe, left"] == near(110) and results["swipe, right"] == near(140)
    assert results["swipe moved, left"] == near(110) and results["swipe moved, right"] == near(110)


def test_flicker_shows_both_in_turn(results):
    assert sorted(results["flicker"]) == [pytest.approx(110, abs=2), pytest.approx(140, abs=2)]


def test_subtraction_and_its_projection(results):
    assert results["subtraction"] == near(127.5 + 60 / 2)
    assert results["projection"] == near(60)


def test_an_overlay_tints_and_contrast_and_brightness_change_grey(results):
    red, green, blue = results["jacobian"]
    assert red > green + 30 and red > blue + 30
    assert results["more contrast"][0] == pytest.approx(255 * ((140 / 255 - 0.5) / 0.5 + 0.5), abs=3)
    assert results["less bright"][0] == pytest.approx(140 - 0.1 * 255, abs=3)


def test_keys_move_time_and_slice_and_switch(results):
    assert results["keys"] == {"time": 1, "slice": 5, "mode": "before"}


def test_a_region_at_the_cross_or_drawn_has_the_curve_of_its_voxels(results):
    for way in ("region at the cross", "region drawn"):
        rows = results[way]
        assert [float(rows[f"signal, {k}: t{k}"][0]) for k in range(3)] == pytest.approx([80, 95, 110], abs=1)
        assert [float(rows[f"signal, {k}: t{k}"][1]) for k in range(3)] == pytest.approx([80, 110, 140], abs=1)
        assert float(rows["peak enhancement, %"][1]) == pytest.approx(75, abs=2)
        assert float(rows["signal enhancement ratio"][1]) == pytest.approx(0.5, abs=0.05)
    assert results["voxels drawn"] == 12  # a rectangle of 4 by 3


def test_a_small_bright_lesion_has_its_true_curve_and_its_own_window(results):
    rows = results["lesion"]
    signals = [rows[f"signal, {k}: t{k}"] for k in range(3)]
    assert [float(after) for _, after in signals] == pytest.approx(LESION, abs=0.1)
    assert signals[1][0] == "–"  # outside the field of view before registration
    assert [float(signals[k][0]) for k in (0, 2)] == pytest.approx([200, 600], abs=0.1)
    assert float(rows["peak enhancement, %"][1]) == pytest.approx(350, abs=0.2)
    assert float(rows["timepoint of the peak"][1]) == 1
    assert float(rows["signal enhancement ratio"][1]) == pytest.approx(1.75, abs=0.002)
    assert float(rows["peak enhancement, %"][0]) == pytest.approx(200, abs=0.2)
    assert results["lesion in the first window"] == 255
    # Around the middle of 0 to 255, wide enough for 900.
    expected = 255 * ((600 - 127.5) / (2 * (900 - 127.5)) + 0.5)
    assert results["lesion in the widest window"] == pytest.approx(expected, abs=3)


def test_the_region_of_a_file_is_there_from_the_start_in_all_planes_and_comes_back(results):
    assert results["cross at the start"] in ([11, 5, 3], [11, 5, 4])
    for way in ("file at the start", "file again"):
        rows = results[way]
        assert [float(rows[f"signal, {k}: t{k}"][0]) for k in range(3)] == pytest.approx([70, 85, 100], abs=0.1)
        assert [float(rows[f"signal, {k}: t{k}"][1]) for k in range(3)] == pytest.approx([70, 100, 130], abs=0.1)
    assert results["text of the file"] == "18 voxels of lesion.nii."
    # Its edges on the screen, where the patient's left is on the right, front and head are up.
    assert results["edges after"] == {"axial": True, "coronal": True, "sagittal": True}
    assert results["edges before"] == {"axial": True, "coronal": True, "sagittal": True}
    assert not results["edge after, shown before"] and not results["edge, drawn region"]


def test_motion_that_is_not_known_is_a_dash(results):
    assert results["motion"].count("rect") == 2 and results["motion"].count("text–") == 1


def test_light_and_dark(results):
    assert len(set(results["background"])) == 2
