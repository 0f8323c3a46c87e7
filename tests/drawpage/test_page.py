"""The page to draw on in a real browser: its answers, its layout, and what it may not do."""

import json
import re

import numpy as np
import pytest
from browser import needs_browser
from digit_files import MNIST, needs_mnist
from drawn import ANSWERED, on_paper, ready, settled, verdict, written
from export_stacks import randomized
from runs import small_layers

from minicnn import Sequential, mnist_cnn
from minicnn.data.load import load_test

pytestmark = needs_browser

HOSTILE = ("<img src=x onerror=hacked=1>", "</script><b>", *"cdefghij")
# The probabilities of each net for images, by the page's own worker.
ASK = """
(async (images) => {
  const other = new Worker(URL.createObjectURL(new Blob([at("worker").textContent])));
  const next = () =>
    new Promise((resolve) => {
      other.onmessage = (event) => resolve(event.data);
    });
  other.postMessage(at("network").textContent);
  await next();
  const found = [];
  for (const [id, image] of images.entries()) {
    other.postMessage({ id, image, shown: null });
    found.push((await next()).outputs.map((output) => Array.from(output)));
  }
  other.terminate();
  return found;
})
"""
# What the page shows of an answer.
SHOWN = """
({
  image: Array.from(image),
  verdict: at("verdict").textContent,
  spoken: at("spoken").textContent,
  rows: rows.map(({ row, name, bar, value }) => [
    name.textContent, parseFloat(value.textContent), parseFloat(bar.style.width), row.className,
  ]),
  votes: votes.map((vote) => [vote.textContent, vote.className]),
})
"""
GREYS = """
(([canvas, x, y, width, height]) => {
  const { data } = canvas.getContext("2d").getImageData(x, y, width, height);
  return Array.from(data.filter((_, i) => i % 4 === 0));
})
"""


def predicted(model, shown):
    """Of each net, and their mean, for the image that is shown: (E, classes), (classes,)."""
    image = np.array(shown["image"], np.uint8).reshape(1, 28, 28)
    probabilities = model.predict(image)[:, 0]
    return probabilities, probabilities.mean(axis=0)


# ---- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["mouse", "touch"])
def test_strokes_give_the_digit_expected(browser, page, way):
    size = {"width": 390, "height": 844, "touch": True} if way == "touch" else {}
    tab = ready(browser.open(page, **size))
    draw = tab.touch_stroke if way == "touch" else tab.mouse_stroke
    for digit in range(10):
        for stroke in on_paper(tab, digit):
            draw(stroke)
        assert verdict(tab) == str(digit)
        assert tab.evaluate("strokes.length") == len(on_paper(tab, digit))
        tab.evaluate("at('clear').click()")
        assert tab.evaluate("at('verdict').textContent") == "Draw a digit."
    assert tab.complaints() == []


@pytest.mark.parametrize("sure", [True, False])
def test_what_is_shown_is_what_the_nets_predict(browser, tmp_path, trained, sure):
    model = trained if sure else randomized(Sequential(small_layers(0.4, 0.9), nets=3, seed=1))
    tab = ready(browser.open(written(tmp_path, model)))
    for stroke in on_paper(tab, 4):
        tab.mouse_stroke(stroke)
    settled(tab)
    shown = tab.evaluate(SHOWN)
    each, mean = predicted(model, shown)
    winner = mean.argmax()
    agree = int((each.argmax(axis=1) == winner).sum())
    [name, percent, nets, rest] = re.fullmatch(
        r"(\d) probability ([\d.]+) %, (\d of \d) nets agree(, unsure)?", shown["verdict"]
    ).groups()
    assert (name, nets) == (str(winner), f"{agree} of {len(each)}")
    assert float(percent) == pytest.approx(100 * mean[winner], abs=0.3)
    assert bool(rest) == (mean[winner] < 0.5 or 3 * agree < 2 * len(each)) == (not sure)
    assert shown["spoken"] == shown["verdict"].replace(" ", ", ", 1)
    assert [row[0] for row in shown["rows"]] == list("0123456789")
    for place in (1, 2):  # in words, and as a bar
        values = [row[place] for row in shown["rows"]]
        np.testing.assert_allclose(values, 100 * mean, atol=0.3)
    assert [row[3] for row in shown["rows"]] == ["winner" if i == winner else "" for i in range(10)]
    for net, ((text, kind), output) in enumerate(zip(shown["votes"], each, strict=True), 1):
        choice = output.argmax()
        vote, percent = re.fullmatch(rf"net {net}: (\d) ([\d.]+) %", text).groups()
        assert (vote, kind) == (str(choice), "" if choice == winner else "other")
        assert float(percent) == pytest.approx(100 * output[choice], abs=0.3)
    seen = tab.evaluate(f"{GREYS}([at('seen'), 0, 0, 28, 28])")
    assert seen == shown["image"] and max(seen) == 255


def test_of_many_classes_the_most_probable_are_listed(browser, tmp_path):
    classes = [f"class number {i}" for i in range(40)]
    layers = small_layers(0.4, 0.9, classes=40)
    model = randomized(Sequential(layers, nets=1, device="numpy", classes=classes))
    tab = ready(browser.open(written(tmp_path, model)))
    tab.mouse_stroke(on_paper(tab, 0)[0])
    settled(tab)
    shown = tab.evaluate(SHOWN)
    mean = predicted(model, shown)[1]
    order = np.argsort(-mean)[:10]
    assert [row[0] for row in shown["rows"]] == [classes[i] for i in order]


@pytest.mark.parametrize("size", [(320, 700), (844, 390), (1280, 800)])
def test_long_names_of_classes_fit_the_window(browser, tmp_path, size):
    classes = [f"the very long name {i}" for i in range(10)]
    layers = small_layers(0.4, 0.9)
    model = randomized(Sequential(layers, nets=15, device="numpy", classes=classes))
    tab = ready(browser.open(written(tmp_path, model), *size))
    tab.mouse_stroke(on_paper(tab, 0)[0])
    settled(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert tab.evaluate("document.querySelector('table').offsetHeight") < 700


@needs_mnist
def test_probabilities_equal_predictions(browser, tmp_path):
    model = mnist_cnn(nets=2, device="numpy")
    images = load_test(MNIST, progress=False).x_test[:100]
    tab = ready(browser.open(written(tmp_path, randomized(model))))
    found = tab.evaluate(f"{ASK}({json.dumps(images.reshape(100, -1).tolist())})")
    expected = model.predict(images)
    np.testing.assert_allclose(np.swapaxes(found, 0, 1), expected, rtol=0, atol=2e-3)


def test_what_is_seen_while_the_pen_moves(browser, page, trained):
    tab = ready(browser.open(page))
    [stroke] = on_paper(tab, 0)
    tab.mouse("mousePressed", *stroke[0])
    for point in stroke[1:]:
        tab.mouse("mouseMoved", *point)
    settled(tab)
    assert tab.evaluate("pointer !== null && at('time').textContent === ''")
    shown = tab.evaluate(SHOWN)  # the answer is that of the last image
    values = [row[1] for row in shown["rows"]]
    np.testing.assert_allclose(values, 100 * predicted(trained, shown)[1], atol=0.3)


def test_what_changes_before_an_answer_is_asked_after_it(browser, page, trained):
    tab = ready(browser.open(page))
    [stroke] = on_paper(tab, 0)
    tab.evaluate("worker.onmessage = null")  # so that no answer comes but those below
    tab.mouse("mousePressed", *stroke[0])
    for point in stroke[1:]:
        tab.mouse("mouseMoved", *point)
    tab.wait("isBehind && frame === null")
    tab.evaluate("other = [...'0000000100'].map(Number)")
    tab.evaluate("given = (id) => receive({ data: { id, outputs: [other], maps: null } })")
    tab.evaluate("given(asked - 1)")  # it comes too late
    assert tab.evaluate("at('verdict').textContent") == "Draw something larger."
    tab.evaluate("worker.onmessage = receive, given(asked)")
    settled(tab)
    shown = tab.evaluate(SHOWN)
    values = [row[1] for row in shown["rows"]]
    np.testing.assert_allclose(values, 100 * predicted(trained, shown)[1], atol=0.3)


@pytest.mark.parametrize(("nets", "most"), [(4, 50), (15, 200)])
def test_the_time_of_an_answer(browser, tmp_path, nets, most):
    tab = ready(browser.open(written(tmp_path, mnist_cnn(nets=nets, device="numpy"))))
    [stroke] = on_paper(tab, 0)
    times = []
    for _ in range(8):  # the least of them, because other work may run beside
        tab.evaluate("at('clear').click()")
        tab.mouse_stroke(stroke)
        tab.wait(ANSWERED)
        times.append(int(re.search(r"(\d+) ms", tab.evaluate("at('time').textContent"))[1]))
    assert min(times) <= most, times


# ---- the layers ----------------------------------------------------------------------------------


def test_feature_maps_on_request(browser, page, trained):
    tab = ready(browser.open(page))
    tab.evaluate("at('layers').open = true")
    assert tab.wait("!at('unmapped').hidden && at('unmapped').offsetHeight > 0")
    tab.evaluate("at('example').click()")
    tab.wait("figures.size && !isBusy")
    captions = tab.evaluate(
        "[...document.querySelectorAll('#maps figcaption')]"
        ".map((caption) => caption.textContent.split(',')[0])"
    )
    assert captions == [
        "conv2d: 8 maps of 12 x 12 pixels",
        "conv2d_1: 16 maps of 4 x 4 pixels",
        "dense: 10 values",
    ]
    first = Sequential(trained.layers[:1], nets=2, device="numpy")
    first.set_weights(trained.get_weights()[:2])
    image = np.array(tab.evaluate("Array.from(image)"), np.uint8).reshape(1, 28, 28)
    for net in (1, 0):
        tab.evaluate(f"at('net').value = {net}; at('net').dispatchEvent(new Event('change'))")
        settled(tab)
        maps = first.predict(image)[net, 0]  # (12, 12, 8)
        expected = 255 * (maps - maps.min()) / (maps.max() - maps.min())
        for channel in range(8):
            where = f"figures.get(0).canvas, {13 * channel}, 0, 12, 12"
            greys = np.array(tab.evaluate(f"{GREYS}([{where}])")).reshape(12, 12)
            np.testing.assert_allclose(greys, expected[..., channel], atol=1.5)
    tab.evaluate("at('clear').click()")
    assert tab.evaluate("at('maps').hidden && !at('unmapped').hidden")


# ---- faults --------------------------------------------------------------------------------------


def test_a_damaged_file_says_so(browser, page, tmp_path):
    text = page.read_text()
    damaged = tmp_path / "damaged.html"
    damaged.write_text(re.sub(r'"kernel":"....', '"kernel":"!', text))
    tab = browser.open(damaged)
    tab.wait("failure !== ''")
    tab.mouse_stroke(on_paper(tab, 0)[0])
    tab.evaluate("at('clear').click()")
    for place in ("verdict", "spoken"):
        words = tab.evaluate(f"at('{place}').textContent")
        assert words.startswith("The networks cannot be run: ")


def test_a_fault_during_an_answer_is_told(browser, page):
    tab = ready(browser.open(page))
    tab.evaluate("worker.postMessage({ id: 0, image: null, shown: null })")
    tab.wait("at('verdict').textContent.startsWith('The networks cannot be run: ')")


# ---- texts of unknown origin, and the policy -----------------------------------------------------


def test_names_of_classes_stay_text(browser, tmp_path):
    layers = small_layers(0.4, 0.9)
    model = randomized(Sequential(layers, nets=2, device="numpy", classes=HOSTILE))
    tab = ready(browser.open(written(tmp_path, model)))
    tab.mouse_stroke(on_paper(tab, 0)[0])
    tab.wait(ANSWERED)
    assert tab.evaluate("document.querySelectorAll('main img, main b').length") == 0
    assert tab.evaluate("typeof hacked") == "undefined"
    names = tab.evaluate("[...document.querySelectorAll('#bars th')].map((th) => th.textContent)")
    assert names == list(HOSTILE)


# The directive of the policy that forbids a request.
REQUEST = """
new Promise((resolve) => {
  addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
  fetch("http://127.0.0.1:9/").catch(() => null);
})
"""
IN_WORKER = """
new Promise((resolve) => {
  const other = new Worker(URL.createObjectURL(new Blob([given + ".then(postMessage)"])));
  other.onmessage = (event) => resolve(event.data);
})
"""


@pytest.mark.parametrize("where", ["page", "worker"])
def test_the_policy_allows_no_connection(browser, page, where):
    tab = ready(browser.open(page))
    asked = REQUEST if where == "page" else IN_WORKER.replace("given", json.dumps(REQUEST.strip()))
    assert tab.evaluate(asked) == "connect-src"


# ---- layout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_the_page_fits_the_window(browser, page, width, scheme):
    tab = ready(browser.open(page, width, 844, touch=width < 768, scheme=scheme))
    tab.evaluate("at('layers').open = true; at('example').click()")
    tab.wait("figures.size")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_the_paper_fits_a_phone_in_landscape(browser, page):
    tab = ready(browser.open(page, 844, 390, touch=True))
    assert tab.evaluate("paper.getBoundingClientRect().height") < 300
