"""A gallery in a headless Chromium: filters, the list of paths, names from anywhere, phones and both schemes."""

import pytest
from PIL import Image
from report_support import HOSTILE

from rdcd_jax.report.gallery import Figure, Section, write_gallery


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    def figure(name, colour, kept=False):
        return Figure(
            name, [name], lambda: Image.new("RGB", (40, 30), colour), kept, f"/photos/{name}.jpg"
        )

    sections = []
    for n, score in ((1, 0.9), (2, 0.5), (3, 0.2)):
        figures = [figure(f"keep{n}", "red", True), figure(f"copy{n}", "blue")]
        sections.append(Section(f"Group {n}", "", [*figures, figure(HOSTILE, "green")], score))
    path = tmp_path_factory.mktemp("gallery") / "gallery.html"
    write_gallery(path, "Duplicates", "Three groups.", sections)
    return path.as_uri()


@pytest.fixture
def page(browser, address):
    browser.set_size(1280, 900)
    browser.set_media(prefers_color_scheme="light")
    browser.open(address)
    yield browser
    assert browser.messages() == []
    assert browser.run("return window.caught === undefined")


def shown(page):
    return page.run(
        "return [...document.querySelectorAll('.group')].filter(e => e.offsetParent)"
        ".map(e => e.querySelector('h2').textContent.trim())"
    )


def give(page, name, value):
    page.run(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'))",
        name,
        value,
    )


def paths(page):
    return page.run("return document.getElementById('paths').value").split("\n")


def test_groups_are_filtered_by_score_and_folder(page):
    assert shown(page) == ["Group 1", "Group 2", "Group 3"]
    give(page, "least", "0.4")
    assert shown(page) == ["Group 1", "Group 2"]
    give(page, "text", "COPY2")
    assert shown(page) == ["Group 2"]
    assert "1 of 3 shown; 2 paths" in page.run(
        "return document.getElementById('count').textContent"
    )
    give(page, "least", "")
    give(page, "text", "/nowhere/")
    assert shown(page) == []


def test_the_paths_are_those_of_the_copies(page):
    found = paths(page)
    assert len(found) == 6 and found[0] == "/photos/copy1.jpg" and HOSTILE in found[1]
    give(page, "least", "0.6")
    assert len(paths(page)) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(390, 800), (1280, 900)])
def test_it_fits_phones_and_both_schemes(page, scheme, size):
    page.set_size(*size)
    page.set_media(prefers_color_scheme=scheme)
    assert page.run(
        "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )
    colour, ground = page.run(
        "return [getComputedStyle(document.body).color,"
        " getComputedStyle(document.documentElement).backgroundColor]"
    )
    assert colour != ground


def test_every_control_has_a_name(page):
    nameless = page.run(
        "return [...document.querySelectorAll('input, textarea, button')]"
        ".filter(e => !(e.labels && e.labels.length) && !e.getAttribute('aria-label') && !e.textContent.trim()).length"
    )
    assert nameless == 0
