"""The page to draw on as a file: its weights, its policy, and texts of unknown origin in it."""

import base64
import hashlib
import html.parser
import json
import re

import numpy as np
import pytest
from export_stacks import randomized
from runs import small_layers

from minicnn import Conv2D, Dense, Flatten, Sequential
from minicnn.drawpage import document

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(1)>",
    "\u202egnp",
    "\ud800",
    "{{script}}",
    "&lt;",
    '"',
    "a\nb",
    " ",
)


class Page(html.parser.HTMLParser):
    """The elements of a page, and the text in each script and style."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] in ("script", "style"):
            self.sources.append((self.tags[-1], data))

    def source(self, name):
        """The text of the only element with this id, or of this tag without an id."""
        [found] = [
            data
            for (tag, attributes), data in self.sources
            if data.strip() and attributes.get("id", tag) == name
        ]
        return found

    def policy(self):
        """{directive: sources} of the Content-Security-Policy."""
        [content] = [a["content"] for _, a in self.tags if "http-equiv" in a]
        return {name: sources for name, *sources in map(str.split, content.split(";"))}


def model(classes=None, nets=3, layers=None):
    layers = layers or small_layers(0.4, 0.9)
    return randomized(Sequential(layers, nets=nets, device="numpy", classes=classes))


@pytest.fixture(scope="module")
def plain():
    """(a model, its Page)."""
    made = model()
    return made, Page(document(made))


def array(text, dtype, like):
    return np.frombuffer(base64.b64decode(text), dtype).reshape(like.shape)


def test_kernels_have_16_bits_and_other_weights_32(plain):
    made, page = plain
    network, named = json.loads(page.source("network")), made.named_weights
    assert network["architecture"] == made.architecture.as_dict()
    assert [net["number"] for net in network["nets"]] == [1, 2, 3]
    for e, net in enumerate(network["nets"]):
        for node, stored in zip(made.nodes, net["weights"], strict=True):
            if "scale" in stored:
                gamma, beta, mean, variance = (
                    named[f"{node.name}/{name}"][e].astype(np.float64)
                    for name in ("gamma", "beta", "moving_mean", "moving_variance")
                )
                scale = array(stored.pop("scale"), "<f4", gamma)
                shift = array(stored.pop("shift"), "<f4", gamma)
                x = np.array([[-2.0], [3.0]])
                expected = gamma * (x - mean) / np.sqrt(variance + node.layer.epsilon) + beta
                np.testing.assert_allclose(scale * x + shift, expected, rtol=1e-5, atol=1e-5)
            for name, text in stored.items():
                weight = named[f"{node.name}/{name}"][e]
                kind = np.float16 if name == "kernel" else np.float32
                np.testing.assert_array_equal(array(text, kind, weight), weight.astype(kind))
            assert bool(stored) == bool(node.specs) - ("gamma" in node.specs)


def test_the_first_nets_only():
    found = json.loads(Page(document(model(), 2)).source("network"))
    assert [net["number"] for net in found["nets"]] == [1, 2]


def test_the_policy_allows_this_script_this_style_and_compiled_code_only(plain):
    page = plain[1]

    def digest(text):
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert page.policy() == {
        "default-src": ["'none'"],
        "script-src": [digest(page.source("script")), "'wasm-unsafe-eval'"],
        "style-src": [digest(page.source("style"))],
        "worker-src": ["blob:"],
        "connect-src": ["'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }


def test_nothing_is_loaded_and_no_text_becomes_html(plain):
    page = plain[1]
    for _, attributes in page.tags:
        assert not attributes.keys() & {"src", "href", "style", "action"}
        assert not any(name.startswith("on") for name in attributes)
    scripts = page.source("script") + page.source("worker")
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "http"):
        assert word not in scripts
    assert "url(" not in page.source("style") and "@import" not in page.source("style")


def test_the_scripts_name_elements_that_the_page_has(plain):
    page = plain[1]
    ids = {attributes.get("id") for _, attributes in page.tags}
    named = re.findall(r'(?:\bat|getElementById)\("(\w+)"\)', page.source("script"))
    assert set(named) == ids - {None, "keys"}


def test_names_of_classes_of_unknown_origin():
    made = model(HOSTILE)
    text = document(made)
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 4
    assert "img" not in [tag for tag, _ in page.tags]
    about = json.loads(page.source("about"))
    assert about["classes"][:3] == list(HOSTILE[:3])
    assert about["classes"][3:6] == ["\\u202egnp", "\\ud800", "{{script}}"]
    assert about["examples"] == []
    text.encode()  # no lone surrogate


def test_an_example_of_each_digit_on_the_paper(plain):
    examples = json.loads(plain[1].source("about"))["examples"]
    assert len(examples) == 10
    for strokes in examples:
        points = np.concatenate(strokes)
        assert np.allclose((points.min(axis=0) + points.max(axis=0)) / 2, 0.5, atol=0.01)
        assert np.ptp(points, axis=0).max() == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize(
    ("layers", "shape", "classes", "named"),
    [
        ([Flatten(), Dense(10, "softmax")], (27, 28, 1), None, "27x28 images of 10 classes"),
        ([Flatten(), Dense(10, "softmax")], (28, 28, 3), None, "28x28x3 images of 10 classes"),
        ([Dense(10, "softmax")], (784,), None, "vectors of 784 numbers"),
        ([Flatten(), Dense(10)], (28, 28, 1), None, "28x28 images, expected"),
        ([Conv2D(2, 3, activation="softmax")], (28, 28, 1), ("a", "b"), "28x28 images of 2"),
    ],
)
def test_networks_that_cannot_be_drawn_for(layers, shape, classes, named):
    made = Sequential(layers, shape, device="numpy", classes=classes)
    with pytest.raises(ValueError, match=f"^network: got one for {named}.* classes of 28x28 "):
        document(made)


def test_weights_that_16_bits_cannot_hold():
    made = model(layers=[Flatten(), Dense(10, "softmax")])
    made.named_weights["dense/kernel"][1, 5, 5] = -66_000
    expected = r"dense/kernel: got values up to 6\.6e\+04, expected at most 65504: .* 16 bits"
    with pytest.raises(ValueError, match=expected):
        document(made)
    document(made, 1)
