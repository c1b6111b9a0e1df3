"""The report in a headless Chromium: what a reader can do with it, and that nothing goes wrong on the way."""

import io

import numpy as np
import pytest
from PIL import Image
from report_support import HOSTILE, HOSTILE_EDIT, evaluate, save_images

from rdcd_jax.report.page import write_report

ENTER, RIGHT, DOWN = "\ue007", "\ue014", "\ue015"
PHONE, DESKTOP = (390, 800), (1280, 900)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A report of two runs, one without images, with hostile names all over."""
    root = tmp_path_factory.mktemp("browser")
    images = save_images(root / "data", first_query=HOSTILE)
    evaluate(root / "one", model="one", images=images, noise=0.35, first_query=HOSTILE)
    # Precision 0.9 is never reached: its cells are empty.
    evaluate(root / f"x{HOSTILE}", model="one", noise=9.0, seed=3, first_query=HOSTILE)
    write_report([root / "one", root / f"x{HOSTILE}"], root / "report.html", shown=4)
    return (root / "report.html").as_uri()


@pytest.fixture
def page(browser, address):
    """The report, freshly opened; afterwards the console must be empty and nothing foreign have run."""
    browser.set_size(*DESKTOP)
    browser.set_media(prefers_color_scheme="light")
    browser.open(address)
    yield browser
    assert browser.messages() == []
    assert browser.run("return window.caught === undefined")


def column(page, table, number):
    script = (
        "return [...document.querySelectorAll('table')[arguments[0]].tBodies[0].rows]"
        ".map(r => r.cells[arguments[1]].textContent.trim())"
    )
    return page.run(script, table, number)


def shown(page):
    """Data of the mistakes that are to be seen."""
    return page.run(
        "return [...document.querySelectorAll('#cases > li')].filter(e => e.offsetParent).map(e => ({...e.dataset}))"
    )


def choose(page, name, value):
    page.run(
        "const e = document.getElementById('filters').elements[arguments[0]]; e.value = arguments[1];"
        "e.dispatchEvent(new Event('input', {bubbles: true}))",
        name,
        value,
    )


def test_it_asks_for_nothing_else(page):
    assert page.run("return document.title").startswith("Copy detection: one (one), one (x<img")
    loaded = page.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith("data:") for name in loaded)
    images = page.run("return [...document.images].map(e => [e.complete, e.naturalWidth])")
    assert images and images == [[True, 160]] * len(images)


def test_the_policy_holds(browser, address):
    """What would be smuggled in does not run, and is reported on the console: the other tests would notice."""
    browser.open(address)
    browser.run(
        "const s = document.createElement('script'); s.textContent = 'window.caught = 1'; document.body.append(s);"
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"https://example.invalid/a.png\">')"
    )
    assert browser.run("return window.caught === undefined")
    stored = " ".join(browser.messages())
    assert "script-src" in stored and "img-src" in stored


def test_tables_sort_by_a_click(page):
    heading = "table thead th:nth-child(4)"
    before = column(page, 0, 3)
    page.click(f"{heading} button")
    numbers = [float(text) for text in column(page, 0, 3)]
    assert numbers == sorted(numbers, reverse=True) and len(set(numbers)) > 1
    sort = (
        "return [...document.querySelectorAll('table')[0].tHead.rows[0].cells].map(e => e.ariaSort)"
    )
    assert page.run(sort) == [None] * 3 + ["descending"] + [None] * 7
    page.click(f"{heading} button")
    assert [float(text) for text in column(page, 0, 3)] == numbers[::-1]
    assert page.run(sort)[3] == "ascending"
    # By the run's name, and with that the rows as they were.
    page.click("table thead th:nth-child(1) button")
    assert page.run(sort) == ["ascending"] + [None] * 10
    assert sorted(column(page, 0, 3)) == sorted(before)
    assert [name[:7] for name in column(page, 0, 0)] == ["one (on"] * 2 + ["one (x<"] * 2


def test_what_has_no_value_is_last_either_way(page):
    for _ in range(2):
        page.click("table thead th:nth-child(7) button")
        assert [text == "-" for text in column(page, 0, 6)] == [False, False, True, True]


def test_tables_sort_by_the_keyboard(page):
    edits = "#edits thead th:nth-child(2)"
    assert column(page, 1, 0) == [HOSTILE_EDIT, "blur2"]
    assert column(page, 1, 1) == ["12", "8"]
    page.write(f"{edits} button", ENTER)
    page.write(f"{edits} button", ENTER)
    assert column(page, 1, 1) == ["8", "12"]
    assert page.run(
        "return document.activeElement === document.querySelector(arguments[0])", f"{edits} button"
    )


def test_mistakes_are_filtered(page):
    every = shown(page)
    assert len(every) == 16
    note = "return document.getElementById('shown').textContent"
    assert page.run(note) == "16 of 16 shown"
    choose(page, "outcome", "missed copy")
    assert {each["outcome"] for each in shown(page)} == {"missed copy"}
    choose(page, "run", "1")
    assert shown(page) == [e for e in every if e["run"] == "1" and e["outcome"] == "missed copy"]
    choose(page, "outcome", "")
    choose(page, "run", "")
    choose(page, "kind", HOSTILE_EDIT)
    expected = [each for each in every if "crop" in each["kinds"]]
    assert shown(page) == expected and 0 < len(expected) < 16
    assert page.run(note) == f"{len(expected)} of 16 shown"
    choose(page, "kind", "")
    page.write("#filters input", every[3]["names"].split()[0].upper() + " ")
    found = shown(page)
    assert every[3] in found and len(found) < 16
    page.write("#filters input", "nobody" + ENTER)
    assert shown(page) == [] and page.run(note) == "0 of 16 shown"


def test_lines_are_hidden_and_report_their_values(page):
    state = "return [...document.querySelectorAll('#curves .line')].map(e => getComputedStyle(e).display)"
    assert page.run(state) == ["inline"] * 4
    page.click("#curves .legend li:nth-child(1) input")
    assert page.run(state) == ["none"] + ["inline"] * 3
    stored = "const e = document.querySelector('#curves .tooltip'); return e.offsetParent && e.textContent"
    assert page.run(stored) is None
    # By the keyboard, along the first line that is seen, then to the next.
    page.write("#curves .canvas svg", RIGHT)
    assert page.run(stored).startswith(
        "one (one) · Flat: recall 4.2 %, precision 100.0 %, score 0."
    )
    page.write("#curves .canvas svg", RIGHT)
    assert page.run(stored).startswith("one (one) · Flat: recall 8.3 %, precision")
    page.write("#curves .canvas svg", DOWN)
    assert page.run(stored).startswith("one (x<img src=x onerror=")
    # By the mouse, the nearest point.
    box = page.run(
        "const s = document.querySelector('#spectrum svg'); s.scrollIntoView({block: 'center'});"
        "const b = s.getBoundingClientRect(); return [b.left + b.width * 0.11, b.top + 0.05 * b.height]"
    )
    move = {"type": "pointerMove", "duration": 0, "x": round(box[0]), "y": round(box[1])}
    page.post("actions", actions=[{"type": "pointer", "id": "mouse", "actions": [move]}])
    text = page.run(
        "const e = document.querySelector('#spectrum .tooltip'); return e.offsetParent && e.textContent"
    )
    assert text.endswith("direction 1: 1 of the largest")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_it_fits_phones_and_both_schemes(page, scheme, size):
    page.set_media(prefers_color_scheme=scheme)
    page.set_size(*size)
    assert page.run("return document.documentElement.scrollWidth <= window.innerWidth")
    # No text is cut off at its box, but for tables, which scroll.
    assert (
        page.run(
            "return [...document.querySelectorAll('h1, h2, h3, p, li, label, figcaption')].filter(e => e.offsetParent"
            " && e.scrollWidth > e.clientWidth + 1).map(e => e.outerHTML.slice(0, 200))"
        )
        == []
    )
    with Image.open(io.BytesIO(page.screenshot())) as image:
        ground = np.asarray(image.convert("L"))[4, 4]
    assert ground < 40 if scheme == "dark" else ground > 250


def test_on_paper_there_are_no_controls(page):
    page.set_media(media="print")
    hidden = page.run(
        "return ['nav', '#filters', '.legend input'].map(s => document.querySelector(s).offsetParent === null)"
    )
    assert hidden == [True] * 3
    wide = "const e = document.querySelector('.wide'); return e.scrollHeight <= e.clientHeight + 1"
    assert page.run(wide)


def test_every_control_and_image_has_a_name(page):
    nameless = page.run(
        "const named = e => e.ariaLabel || e.alt || e.labels?.[0]?.textContent.trim() || e.textContent.trim();"
        "return [...document.querySelectorAll('button, input, select, img, svg[role=img], a')].filter(e => !named(e))"
        ".map(e => e.outerHTML.slice(0, 200))"
    )
    assert nameless == []
    assert page.run(
        "return [...document.querySelectorAll('thead th')].every(e => e.scope === 'col')"
    )
