"""The paper of the page to draw on, in a real browser: mouse, pen, fingers and keyboard."""

import numpy as np
import pytest
from browser import needs_browser
from drawn import on_paper, ready, settled, verdict

pytestmark = needs_browser

INK = """
(([x, y]) => {
  const scale = paper.width / paper.clientWidth;
  const box = paper.getBoundingClientRect();
  const at = [Math.round((x - box.left) * scale), Math.round((y - box.top) * scale)];
  return Array.from(paper.getContext("2d").getImageData(...at, 1, 1).data);
})
"""
PHONE = {"width": 390, "height": 844, "touch": True}


def ink(tab, place):
    """The paper's colour [red, green, blue, opacity] at a place in the window."""
    return tab.evaluate(f"{INK}({list(place)})")


def count(tab):
    return tab.evaluate("strokes.length")


def points(tab):
    return tab.evaluate("strokes.at(-1).length")


# ---- painting ------------------------------------------------------------------------------------


def test_ink_in_the_colours_of_the_scheme(browser, page):
    tab = ready(browser.open(page))
    [stroke] = on_paper(tab, 0)
    tab.mouse_stroke(stroke)
    settled(tab)
    middle = np.mean(stroke, axis=0).tolist()  # in the hole of the 0
    assert ink(tab, stroke[0]) == [0x22, 0x22, 0x22, 255]
    assert ink(tab, middle) == [0, 0, 0, 0]
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    tab.call("Emulation.setEmulatedMedia", features=features)
    tab.wait(f"{INK}({stroke[0]})[0] === 0xe8")


def test_the_paper_has_the_pixels_of_the_screen(browser, page):
    tab = ready(browser.open(page))
    for ratio in (1, 2):  # a page that is zoomed
        tab.call(
            "Emulation.setDeviceMetricsOverride",
            width=2560 // ratio,
            height=1600 // ratio,
            deviceScaleFactor=ratio,
            mobile=False,
        )
        tab.wait(f"paper.width === {ratio} * paper.clientWidth")


# ---- mouse, pen and finger -----------------------------------------------------------------------


def test_a_second_finger_draws_nothing(browser, page):
    tab = ready(browser.open(page, **PHONE))
    [stroke] = on_paper(tab, 0)
    tab.touch("touchStart", stroke[0])
    tab.touch("touchStart", stroke[0], stroke[20])
    for point in stroke[1:10]:
        tab.touch("touchMove", point, stroke[20])
    assert count(tab) == 1
    across = tab.evaluate("Math.hypot(...strokes[0].at(-1).map((v, i) => v - strokes[0][0][i]))")
    assert across < 0.5  # the second finger is on the other side of the 0
    tab.touch("touchEnd", stroke[9])  # the finger that is left
    tab.touch("touchEnd")
    tab.wait("pointer === null")
    assert count(tab) == 1


def test_a_touch_that_is_cancelled_ends(browser, page):
    tab = ready(browser.open(page, **PHONE))
    [stroke] = on_paper(tab, 0)
    tab.touch("touchStart", stroke[0])
    tab.touch("touchMove", stroke[5])
    tab.touch("touchCancel")  # Chromium does not wait until the page has seen it
    tab.wait("pointer === null")
    tab.touch_stroke(stroke)
    assert count(tab) == 2


def test_a_pen_takes_the_place_of_the_palm(browser, page):
    tab = ready(browser.open(page, **PHONE))
    [stroke] = on_paper(tab, 0)
    tab.touch("touchStart", stroke[20])
    assert count(tab) == 1
    tab.mouse("mousePressed", *stroke[0], pointerType="pen")
    for point in stroke[1:]:
        tab.mouse("mouseMoved", *point, pointerType="pen")
    tab.mouse("mouseReleased", *stroke[-1], pointerType="pen")
    assert count(tab) == 1
    assert verdict(tab) == "0"


def test_a_release_that_is_not_seen_ends_the_stroke(browser, page):
    tab = ready(browser.open(page))
    [stroke] = on_paper(tab, 0)
    tab.mouse("mousePressed", *stroke[0])
    for point in stroke[1:10]:
        tab.mouse("mouseMoved", *point)
    before = points(tab)
    for point in stroke[10:]:
        tab.mouse("mouseMoved", *point, buttons=0)
    assert tab.evaluate("pointer === null") and points(tab) == before
    tab.mouse("mouseReleased", *stroke[-1])
    tab.mouse_stroke(stroke)
    assert count(tab) == 2


# ---- buttons -------------------------------------------------------------------------------------


def test_undo_clear_and_example(browser, page):
    tab = ready(browser.open(page))
    for digit in (2, 3):
        tab.evaluate("at('time').textContent = ''; at('example').click()")
        assert verdict(tab) == str(digit)
    tab.evaluate("at('time').textContent = ''; at('undo').click()")
    assert verdict(tab) == "2"
    tab.evaluate("at('clear').click()")
    assert tab.evaluate("strokes.length === 0 && at('clear').disabled && !at('undo').disabled")
    tab.evaluate("at('undo').click()")
    assert verdict(tab) == "2"


def test_the_focus_stays_on_the_page(browser, page):
    tab = ready(browser.open(page))
    tab.evaluate("at('example').click()")
    for button in ("clear", "undo", "undo"):
        tab.evaluate(f"at('{button}').focus()")
        tab.evaluate(f"at('{button}').click()")
        focused = "paper" if tab.evaluate(f"at('{button}').disabled") else button
        assert tab.evaluate("document.activeElement.id") == focused
    assert focused == "paper"


# ---- keyboard ------------------------------------------------------------------------------------


def test_the_keyboard_draws_a_one(browser, page):
    tab = ready(browser.open(page))
    tab.evaluate("paper.focus()")
    for key in ["ArrowUp"] * 18 + [" "] + ["ArrowDown"] * 36 + ["Enter"]:
        tab.key(key)
    assert verdict(tab) == "1"
    assert tab.evaluate("strokes.flat().every(([x]) => x === 0.5)")
    tab.key("z", ctrl=True)
    assert count(tab) == 0
    assert tab.evaluate("at('spoken').textContent") == ""
    tab.key("z", ctrl=True)  # there is nothing more to undo
    assert count(tab) == 0


def test_the_lifted_pen_asks_nothing(browser, page):
    tab = ready(browser.open(page))
    tab.evaluate("at('example').click(); paper.focus()")
    settled(tab)
    before = tab.evaluate("asked")
    tab.key("ArrowUp")
    tab.key("ArrowLeft", shift=True)
    assert tab.evaluate("new Promise((done) => requestAnimationFrame(() => done(asked)))") == before
    assert tab.evaluate("[cursor.x, cursor.y]") == pytest.approx([0.5 - 4 / 56, 0.5 - 1 / 56])


def test_delete_clears_and_the_pen_is_lifted_when_the_focus_goes(browser, page):
    tab = ready(browser.open(page))
    tab.evaluate("paper.focus()")
    for key in (" ", "ArrowUp", "ArrowUp"):
        tab.key(key)
    assert tab.evaluate("at('spoken').textContent") == "The pen is down."
    tab.evaluate("paper.blur()")
    assert tab.evaluate("cursor.isDown") is False
    tab.evaluate("paper.focus()")
    tab.key("Delete")
    assert count(tab) == 0
