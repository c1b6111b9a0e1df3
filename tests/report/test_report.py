"""The report's content, without a browser: see test_report_browser.py for what moves."""

import base64
import dataclasses
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from report_support import COPIES, HOSTILE, HOSTILE_EDIT, evaluate, made_up, save_images

from rdcd_jax.cli.main import main
from rdcd_jax.core.errors import UserError
from rdcd_jax.report import charts, page, tables
from rdcd_jax.report.page import write_report
from rdcd_jax.report.runs import FALSE_POSITIVE, MISSED, read_runs

VOID = {"img", "input", "link", "meta", "br"}


class Page(html.parser.HTMLParser):
    """What a page consists of: tags with their attributes, and rows of cells (text, value, whether bold)."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.open, self.texts = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append(["", attributes.get("data-value"), False])
        elif tag == "strong":
            self.tables[-1][-1][-1][2] = True

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1][0] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def cases(self):
        return [each for each in self.all("li") if "data-outcome" in each]


@pytest.fixture
def report(tmp_path):
    """Writes a report of evaluations; gives the page."""

    def write(*folders, **settings):
        write_report(folders, tmp_path / "report.html", **settings)
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return write


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A good and a bad evaluation with images, whose first query has a hostile name."""
    root = tmp_path_factory.mktemp("evaluations")
    images = save_images(root / "data", first_query=HOSTILE)
    evaluate(root / "good", model="good", images=images, noise=0.2, first_query=HOSTILE)
    evaluate(root / "bad", model="bad", images=images, noise=0.35, first_query=HOSTILE)
    return root / "good", root / "bad"


def test_the_figures_are_those_of_metrics_json(folders, report):
    headings, *lines = report(*folders).tables[0]
    names = [text for text, _, _ in headings]
    expected = [
        row for folder in folders for row in json.loads((folder / "metrics.json").read_text())
    ]
    assert len(lines) == len(expected) == 4
    for line, row in zip(lines, expected, strict=True):
        cells = dict(zip(names, line, strict=True))
        assert cells["Pixels"][:2] == ["16 short edge", "16"]
        assert cells["Codec"][0] == row["codec"] and cells["Score norm"][0] == row["score_norm"]
        for name, column in [
            ("uAP", "µAP"),
            ("accuracy-at-1", "Accuracy@1"),
            ("recall-at-p90", "Recall@P90"),
        ]:
            text, value, _ = cells[column]
            assert float(value) == row[name]
            assert text == f"{100 * row[name]:.2f}"
    assert [line[0][0] for line in lines] == ["good", "good", "bad", "bad"]
    best = max(row["uAP"] for row in expected)
    column = names.index("µAP")
    assert [line[column][2] for line in lines] == [row["uAP"] == best for row in expected]


def test_figures_that_do_not_exist(tmp_path, report):
    # So much noise that nine of ten are never right.
    for seed in range(20):
        rows, _ = evaluate(tmp_path / "e", seed=seed, noise=9.0)
        if rows[-1].metrics.recall_at_p90 is None:
            break
    found = report(tmp_path / "e")
    (row,) = [line for line in found.tables[0][1:] if line[1][0] == "L2norm,Flat"]
    cells = {heading[0]: cell[:2] for heading, cell in zip(found.tables[0][0], row, strict=True)}
    assert cells["Recall@P90"] == cells["Score there"] == ["-", ""]
    text = "".join(found.texts)
    assert "No score reaches a precision of 90 %." in text and "there is no threshold" in text
    (run,) = read_runs([tmp_path / "e"])
    # Without a threshold what is not first counts as missed.
    assert len(run.missed()) == COPIES - round(COPIES * rows[-1].metrics.recall_at_1)
    assert all(case.above is None for case in run.false_positives())
    assert all(cell[0] == "-" for line in found.tables[1][1:] for cell in line[3:])


def test_recall_by_kind_of_edit(folders, report):
    runs = read_runs(folders)
    headings, *lines = report(*folders).tables[1]
    assert [text for text, _, _ in headings] == [
        *("Edit", "Copies", "First: good", "First: bad", "Above: good", "Above: bad")
    ]
    assert [line[0][0] for line in lines] == [HOSTILE_EDIT, "blur2"]
    truth = made_up(first_query=HOSTILE)[2]
    for line in lines:
        pairs = [pair for pair in truth.pairs if line[0][0] in truth.edits.get(pair[0], ())]
        assert line[1][0] == str(len(pairs))
        for number, run in enumerate(runs):
            stored = run.record.predictions
            of_query = {query: stored.query_ids == query for query, _ in pairs}
            first = [
                stored.reference_ids[of_query[query]][0] == reference for query, reference in pairs
            ]
            above = [
                bool(
                    np.any(
                        of_query[query]
                        & (stored.reference_ids == reference)
                        & (stored.scores >= run.threshold)
                    )
                )
                for query, reference in pairs
            ]
            assert float(line[2 + number][1]) == pytest.approx(np.mean(first))
            assert float(line[4 + number][1]) == pytest.approx(np.mean(above))
            assert line[4 + number][0] == f"{100 * np.mean(above):.1f}"


def test_without_edits_the_page_says_so(tmp_path, report, monkeypatch):
    truth = dataclasses.replace(made_up()[2], edits={})
    made = made_up()
    monkeypatch.setattr("report_support.made_up", lambda **_: (*made[:2], truth, made[3]))
    evaluate(tmp_path / "e")
    found = report(tmp_path / "e")
    assert len(found.tables) == 1
    assert "Nothing tells how these queries were edited" in "".join(found.texts)
    assert all(json.loads(each["data-kinds"]) == [] for each in found.cases())


def test_mistakes_are_the_worst_ones(folders):
    run = read_runs(folders)[1]
    stored, true = run.record.predictions, dict(run.record.truth.pairs)
    triples = list(zip(stored.query_ids, stored.reference_ids, stored.scores.tolist(), strict=True))
    wrong = [each for each in triples if true.get(each[0]) != each[1]]
    worst = run.false_positives()
    assert (
        len({case.query for case in worst}) == len(worst) == len({query for query, _, _ in wrong})
    )
    assert (worst[0].query, worst[0].found, worst[0].found_score) == max(wrong, key=lambda e: e[2])
    assert [case.found_score for case in worst] == sorted(
        (c.found_score for c in worst), reverse=True
    )
    for case in worst:
        assert case.true == true.get(case.query) and case.above == (
            case.found_score >= run.threshold
        )
    scores = {(query, reference): score for query, reference, score in triples}
    missed = run.missed()
    expected = {pair for pair in true.items() if scores.get(pair, -9) < run.threshold}
    assert {(case.query, case.true) for case in missed} == expected
    absent = [case for case in missed if case.true_score is None]
    assert absent == missed[: len(absent)]
    below = [case.true_score for case in missed[len(absent) :]]
    assert below == sorted(below) and below
    assert {case.outcome for case in worst} == {FALSE_POSITIVE}
    assert {case.outcome for case in missed} == {MISSED}


def test_images_lie_in_the_page(folders, report):
    found = report(*folders, shown=3)
    assert [(each["data-run"], each["data-outcome"]) for each in found.cases()] == [
        *[("0", FALSE_POSITIVE)] * 3,
        *[("0", MISSED)] * len(read_runs(folders)[0].missed()[:3]),
        *[("1", FALSE_POSITIVE)] * 3,
        *[("1", MISSED)] * 3,
    ]
    images = found.all("img")
    assert len(images) >= 2 * len(found.cases())
    for each in images:
        head, _, content = each["src"].partition(",")
        assert head == "data:image/jpeg;base64" and each["alt"]
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert image.format == "JPEG" and image.size == (160, 120)


def test_images_have_a_bound_and_the_worst_stay(folders, report, monkeypatch):
    every = {case["data-names"] for case in report(*folders, shown=4).cases()}
    monkeypatch.setattr(page, "_BYTES", 50_000)
    found = report(*folders, shown=4)
    size = sum(len(each["src"]) for each in found.all("img"))
    assert 10_000 < size <= 50_000
    kept = found.cases()
    assert len(kept) < len(every)
    runs = read_runs(folders)
    for number, run in enumerate(runs):
        for outcome, worst in [(FALSE_POSITIVE, run.false_positives()), (MISSED, run.missed())]:
            names = [
                each["data-names"]
                for each in kept
                if (each["data-run"], each["data-outcome"]) == (str(number), outcome)
            ]
            assert names == [
                " ".join([case.query, case.found or "", case.true or ""])
                for case in worst[: len(names)]
            ]
    assert report(*folders, shown=0).cases() == []


def test_lost_images_and_descriptor_files_are_reported(tmp_path, report):
    images = save_images(tmp_path / "data")
    evaluate(tmp_path / "lost", model="lost", images=images)
    evaluate(tmp_path / "files", model="files")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    found = report(tmp_path / "lost", tmp_path / "files")
    text = "".join(found.texts)
    assert "lost has no images to show any more; they are not where they were." in text
    assert str(tmp_path) not in text
    assert "files was evaluated from descriptor files, so it has no images to show." in text
    assert not found.all("img") and found.cases()
    # One that is broken leaves the others.
    (tmp_path / "elsewhere").rename(tmp_path / "data")
    worst = read_runs([tmp_path / "lost"])[0].false_positives()[0]
    (tmp_path / "data" / "queries" / f"{worst.query}.jpg").write_bytes(b"broken")
    found = report(tmp_path / "lost")
    assert found.all("img") and "no picture" in "".join(found.texts)
    assert f"Query {worst.query}" not in {each["alt"] for each in found.all("img")}


def test_names_from_files_are_text_and_nothing_else(tmp_path, report):
    closing = "</script><script>window.caught=1</script>"
    evaluate(tmp_path / f"a{HOSTILE}", model=closing, first_query=closing, noise=0.9)
    evaluate(tmp_path / "b", model=closing, first_query="a\x00b\u202ec\n", noise=0.9)
    found = report(tmp_path / f"a{HOSTILE}", tmp_path / "b")
    assert [each for each in found.all("script") if not each] == [{}]
    assert all(each.get("type") == "application/json" for each in found.all("script") if each)
    assert not found.all("b") and not [each for _, each in found.tags if "onerror" in each]
    text = "".join(found.texts)
    assert f"{closing} (a{HOSTILE})" in text and HOSTILE_EDIT in text
    assert "a\\x00b\\u202ec\\n" in text
    assert not {"\x00", "\u202e"} & set(text)
    kinds = {kind for each in found.cases() for kind in json.loads(each["data-kinds"])}
    assert HOSTILE_EDIT in kinds


def test_the_page_needs_nothing_else(folders, report, tmp_path):
    found = report(*folders)
    for _, attributes in found.tags:
        for name in ("src", "href", "srcset", "data", "action", "xlink:href"):
            assert re.match(r"data:|#|$", attributes.get(name, "")), attributes
    written = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", written)
    (policy,) = [each["content"] for each in found.all("meta") if "http-equiv" in each]
    assert policy.startswith("default-src 'none'")
    assert written.startswith("<!doctype html>")
    # Ids that the page links to are there, once.
    ids = [each["id"] for _, each in found.tags if "id" in each]
    assert len(ids) == len(set(ids))
    links = {each["href"][1:] for each in found.all("a")}
    labels = {each["aria-labelledby"] for _, each in found.tags if "aria-labelledby" in each}
    assert links | labels <= set(ids)


def test_the_same_evaluations_give_the_same_page(folders, tmp_path):
    for name in ("one.html", "two.html"):
        write_report(folders, tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_runs_are_named_apart(tmp_path):
    for name in ("a/x", "b/x", "b/y", "c"):
        evaluate(tmp_path / name, model="other" if name == "c" else "toy")
    evaluate(tmp_path / "d", model="")
    names = [run.name for run in read_runs([tmp_path / n for n in ("a/x", "b/x", "b/y", "c", "d")])]
    assert names == ["toy (a/x)", "toy (b/x)", "toy (y)", "other", "unnamed descriptors"]
    run = read_runs([tmp_path / "c"])[0]
    assert [run.title(row) for row in run.record.rows] == ["other · Flat", "other · L2norm,Flat"]
    with pytest.raises(UserError, match="is given twice"):
        read_runs([tmp_path / "c", tmp_path / "d", tmp_path / "c" / ".." / "c"])


def test_runs_of_other_data_are_not_ranked(tmp_path, report):
    evaluate(tmp_path / "one", model="one")
    evaluate(tmp_path / "two", model="two", first_query="other")
    found = report(tmp_path / "one", tmp_path / "two")
    assert "compare only those of the same data" in "".join(found.texts)
    assert not found.all("strong")


def test_names_sort_by_their_numbers():
    names = ["S10", "C2", "S9", "blur", "S", "2nd", "10th", "é²"]
    assert sorted(names, key=tables.natural_order) == [
        "2nd",
        "10th",
        "C2",
        "S",
        "S9",
        "S10",
        "blur",
        "é²",
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_stand_out(scheme):
    style = page.template("report.css")
    blocks = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[scheme == "dark"]))

    def light(name):
        parts = np.asarray([int(colours[name][i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    def contrast(one, two):
        low, high = sorted([light(one), light(two)])
        return (high + 0.05) / (low + 0.05)

    for ground in ("ground", "raised"):
        assert contrast("ink", ground) >= 7
        assert min(contrast(name, ground) for name in ("quiet", "link")) >= 4.5
    assert contrast("ink", "warn") >= 7
    assert len([name for name in colours if re.fullmatch(r"c\d", name)]) == charts.COLOURS
    assert min(contrast(f"c{i}", "ground") for i in range(charts.COLOURS)) >= 4.5


def test_the_verb(folders, tmp_path, capsys):
    out = tmp_path / "new" / "r.html"
    assert main(["report", *map(str, folders), f"--out={out}", "--mistakes=2"]) == 0
    assert re.fullmatch(
        rf"good, bad: {re.escape(str(out))} \(\d\.\d MB\)\.\n", capsys.readouterr().out
    )
    assert len(Page(out.read_text()).cases()) <= 8
    for arguments, sentence in [
        (["none"], "none: there is no such folder"),
        ([str(tmp_path)], "holds no evaluation.json"),
        ([str(folders[0]), "--mistakes=-1"], "--mistakes=-1 must be at least 0"),
        ([str(folders[0]), f"--out={tmp_path}"], "is a folder; give the name of a file"),
    ]:
        assert main(["report", *arguments]) == 1
        stored = capsys.readouterr()
        assert stored.out == "" and sentence in stored.err and len(stored.err.splitlines()) == 1
