"""`report.html` as a person uses it in a browser: with the mouse or with the keyboard alone, in light and in dark."""

from pathlib import Path

import chromium
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium here: apt-get install chromium"),
]
CONTRASTS = (Path(__file__).parent / "contrasts.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    window = chromium.Window(tmp_path_factory.mktemp("profile"))
    yield window
    window.close()


@pytest.fixture
def page(window, shown_page):
    """The page at the third scan, with the cross at voxel 8, 6, 4."""
    window.call("Emulation.setEmulatedMedia", features=[])
    window.open(shown_page)
    window.wait("document.body?.dataset.ready")
    window.run("state.cross = [8, 6, 4]; state.time = 2; update()")
    return window


def grey(page, right):
    """Grey value of the axial image at a place, from 0 to 1 to the right."""
    return page.run(
        f"(() => {{ const c = document.getElementById('axial'); return c.getContext('2d').getImageData("
        f"Math.floor({right} * c.width), Math.floor(0.3 * c.height), 1, 1).data[0]; }})()"
    )


def drag_slider(page, name, start, end):
    """Drag the handle of a slider from one share of its range to another."""
    half = 8 / page.run(f"document.getElementById({name!r}).getBoundingClientRect().width")  # of the handle
    shares = (start, 0.5 * (start + end), end)
    page.drag([page.place(name, half + share * (1 - 2 * half)) for share in shares])


def test_sliders_are_dragged(page):
    """At slice 4 the third scan is 110 before registration and 140 after, and the first one 80."""
    assert grey(page, 0.8) == pytest.approx(140, abs=2)
    drag_slider(page, "time", 1, 0)
    assert grey(page, 0.8) == pytest.approx(80, abs=2)
    drag_slider(page, "time", 0, 1)
    drag_slider(page, "axial-slice", 4 / 7, 1)
    assert page.run("state.cross[2]") == 7 and grey(page, 0.8) == pytest.approx(200, abs=2)
    drag_slider(page, "axial-slice", 1, 4 / 7)
    page.press("s")
    assert (grey(page, 0.2), grey(page, 0.8)) == (pytest.approx(110, abs=2), pytest.approx(140, abs=2))
    drag_slider(page, "swipe", 0.5, 0.95)
    assert (grey(page, 0.2), grey(page, 0.8)) == (pytest.approx(110, abs=2), pytest.approx(110, abs=2))


def test_the_mouse_moves_the_cross_and_draws_a_region(page):
    page.drag([page.place("axial", x / 16, y / 12) for x, y in ((3.5, 2.5), (5.5, 4.5), (6.5, 4.5))])
    assert page.run("state.cross") == [16 - 7, 12 - 5, 4]  # right and front are at the left and at the top
    page.click("draw")
    page.drag([page.place("axial", x / 16, y / 12) for x, y in ((2, 2), (6, 2), (6, 5), (2, 5))])
    assert page.run("document.getElementById('region').textContent").startswith("12 voxels of axial slice 5")
    rows = page.run("[...document.getElementById('curve-numbers').rows].slice(1, 4).map((r) => r.cells[2].textContent)")
    assert [float(text) for text in rows] == pytest.approx([80, 110, 140], abs=1)
    assert page.run("document.querySelector('#curve polyline.after').getAttribute('points')")


def test_the_keyboard_alone_reaches_everything(page):
    controls = page.run(
        "[...document.querySelectorAll('input, select, button:not([hidden]), canvas')].map((e) => e.id)"
    )
    reached = []
    for _ in range(len(controls) + 5):
        page.press("Tab")
        reached.append(page.run("document.activeElement.id"))
        if reached[-1] == "axial":
            assert page.run("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
            page.press("ArrowDown", "ArrowDown", "ArrowLeft")
            assert page.run("[state.cross[2], state.time]") == [2, 1]
            page.press(" ", "r")
            assert page.run("state.mode") == "before"
            assert page.run("document.getElementById('region').textContent").endswith("axial slice 3.")
    assert set(controls) <= set(reached)


def test_everything_has_a_name_for_a_screen_reader(page):
    spoken = {"slider", "combobox", "button", "image", "img"}
    nodes = [n for n in page.call("Accessibility.getFullAXTree")["nodes"] if not n["ignored"]]
    named = [(n["role"]["value"], n.get("name", {}).get("value")) for n in nodes if n["role"]["value"] in spoken]
    assert len(named) >= 15 and {role for role, _ in named} >= {"slider", "combobox", "button"}
    assert [pair for pair in named if not pair[1]] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_system_and_is_readable(page, scheme):
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    bright = "parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]) > 128"
    assert page.run(bright) == (scheme == "light")
    page.run("regionAtCross()")
    for _ in range(2):
        contrasts = page.run(CONTRASTS)
        assert len(contrasts) > 40 and [pair for pair in contrasts if pair[1] < 4.5] == []
        page.click("theme")
    assert page.run(bright) == (scheme == "light")
