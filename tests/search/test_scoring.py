"""Scores normalised by a model's background, in an index, in groups and on disk."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from toy import make_export, make_images
from toy import unit_rows as toy_rows

from rdcd_jax.cli.main import main
from rdcd_jax.core.errors import UserError
from rdcd_jax.index import Index
from rdcd_jax.index.duplicates import groups_of
from rdcd_jax.index.manifest import MANIFEST
from rdcd_jax.search import backends as exact_search
from rdcd_jax.search.background import BACKGROUND, read_background, write_background
from rdcd_jax.search.calibration import Calibration
from rdcd_jax.search.int8 import quantised
from rdcd_jax.search.score_norm import apply_score_norm
from rdcd_jax.search.scoring import Scoring
from rdcd_jax.weights.library import FIRST_OF, export_model, load_model

unit_rows = functools.partial(toy_rows, dim=4)


@pytest.fixture
def model(toys, tmp_path):
    """An export with a background and both calibrations."""
    folder = make_export(tmp_path / "model")
    meaning = {
        **dataclasses.asdict(Calibration(0.0, 2.0, 4, "a set", (0.9, 0.8))),
        "normalised": dataclasses.asdict(Calibration(0.0, 5.0, 4, "a set", (0.6, 0.3), "1.0[0,2]")),
    }
    plain = dataclasses.replace(load_model(str(folder)), background=unit_rows(9, 5))
    export_model(folder, plain, about={"calibration": meaning})
    return str(folder)


@pytest.mark.parametrize("dim", [4, 3])
def test_a_background_comes_back_nearly(dim, tmp_path):
    rows = unit_rows(50)
    write_background(tmp_path / "b", rows)
    expected = rows[:, :dim] / np.linalg.norm(rows[:, :dim], axis=1, keepdims=True)
    np.testing.assert_allclose(read_background(tmp_path / "b", dim), expected, atol=0.02)
    assert (tmp_path / "b").stat().st_size < 50 * 8 + 300
    with pytest.raises(UserError, match="holds no descriptors of 5 dimensions"):
        read_background(tmp_path / "b", 5)
    (tmp_path / "b").write_bytes(b"something else")
    with pytest.raises(UserError, match="is no background of descriptors .*; export the model"):
        read_background(tmp_path / "b", 4)


def test_an_export_carries_its_background(model, tmp_path):
    found = load_model(model)
    np.testing.assert_allclose(found.background, unit_rows(9, 5), atol=0.01)
    # A student of the first numbers takes the first numbers.
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "model.json").write_text(
        json.dumps({**card, "dim": 3, FIRST_OF: "model"})
    )
    small = load_model(str(tmp_path / "small")).background
    assert small.shape == (9, 3)
    np.testing.assert_allclose(np.linalg.norm(small, axis=1), 1, atol=1e-6)
    # An export without one takes the place of one with.
    export_model(tmp_path / "model", dataclasses.replace(found, background=None))
    assert load_model(model).background is None


def test_scores_are_those_of_the_protocol_s_normalisation():
    background, queries, references = unit_rows(20, 1), unit_rows(6, 2), unit_rows(30, 3)
    scoring = Scoring(background)
    similarities, positions = exact_search.knn(queries, references, 30, "numpy")
    scores = scoring.scores(similarities, scoring.adjustment(queries)[:, None])
    left, right = apply_score_norm(queries, references, background, "1.0[0,2]")
    expected = np.take_along_axis(left @ right.T, positions, axis=1)
    equal = similarities >= 0.998
    np.testing.assert_allclose(scores[~equal], expected[~equal], atol=1e-6)
    assert scoring.scores(np.float32(1), np.float32(-0.9)) == 1
    plain = Scoring()
    np.testing.assert_array_equal(
        plain.scores(similarities, plain.adjustment(queries)[:, None]), similarities
    )


def test_an_image_is_not_compared_with_itself_in_the_background():
    background, query = unit_rows(20, 1), unit_rows(1, 2)
    alone = Scoring(background).adjustment(query)
    # Twice the query's own image, as a background holds it: in 8 bits.
    levels, scales = quantised(np.concatenate([query, query]))
    with_own = np.concatenate([levels * scales[:, None], background])
    np.testing.assert_allclose(Scoring(with_own).adjustment(query), alone, atol=1e-6)
    # A copy of it is another image.
    copy = query + 0.2 * unit_rows(1, 3)
    copy /= np.linalg.norm(copy)
    assert Scoring(np.concatenate([copy, background])).adjustment(query) < alone - 0.05
    # Of so few no rank is left over.
    assert np.isfinite(Scoring(np.concatenate([query, background[:2]])).adjustment(query)).all()


def test_an_index_normalises_by_default(model, tmp_path):
    images = make_images(tmp_path / "pictures", 6)
    index = Index.build(tmp_path / "x", images, model=model)
    assert index.manifest.normalised and (tmp_path / "x" / BACKGROUND).exists()
    assert index.threshold() == index.scoring().calibration.threshold(0.9, 6)
    assert index.scoring().calibration.score_norm
    assert not index.scoring(normalised=False).calibration.score_norm
    queries = make_images(tmp_path / "queries", 3, prefix="Q", seed=9)
    found = index.search(queries, k=2, threshold=-2)
    adjustment = {}
    for match in found:
        adjustment.setdefault(match.query, set()).add(round(match.score - match.similarity, 5))
    assert all(len(one) == 1 for one in adjustment.values()) and len(adjustment) == 3
    plain = index.search(queries, k=2, threshold=-2, normalised=False)
    assert [match.score for match in plain] == [match.similarity for match in found]
    # Copies without an edit are found as surely as before.
    equal = index.search(images, k=1)
    assert [match.query for match in equal] == [match.reference for match in equal]
    assert all(match.score > 0.999 for match in equal) and len(equal) == 6


def test_an_index_may_do_without(model, tmp_path, capsys):
    images = make_images(tmp_path / "pictures", 6)
    words = ["index", "build", str(images), f"--model={model}", f"--out={tmp_path / 'x'}"]
    assert main([*words, "--score-norm=none"]) == 0
    index = Index(tmp_path / "x")
    assert not index.manifest.normalised and index.scoring().background is None
    assert main(["index", "info", str(tmp_path / "x")]) == 0
    assert "normalised" not in capsys.readouterr().out
    assert main([*words[:-1], f"--out={tmp_path / 'y'}"]) == 0
    assert main(["index", "info", str(tmp_path / "y")]) == 0
    stored = capsys.readouterr().out
    assert "scores normalised by a background of 9 images" in stored
    assert "90 % of matches are copies from a score of" in stored
    assert main([*words[:-1], f"--out={tmp_path / 'y'}", "--score-norm=none"]) == 1
    assert "is an index whose scores are normalised" in capsys.readouterr().err
    for option in ([], ["--score-norm=none"]):
        assert main(["search", f"--index={tmp_path / 'y'}", str(images), *option]) == 0
    assert main(["duplicates", str(images), f"--model={model}", "--score-norm=none"]) == 0


def test_a_calibration_of_other_scores_is_refused(model, tmp_path):
    images = make_images(tmp_path / "pictures", 4)
    plain = dataclasses.asdict(Calibration(0.0, 2.0, 4, "a set"))
    with pytest.raises(UserError, match="knows nothing of normalised scores"):
        Index.build(tmp_path / "x", images, model=model, calibration=plain)
    assert not (tmp_path / "x").exists()
    index = Index.build(tmp_path / "x", images, model=model, calibration=plain, normalised=False)
    assert index.scoring().calibration == Calibration(0.0, 2.0, 4, "a set")


def test_a_damaged_background_is_reported(model, tmp_path):
    images = make_images(tmp_path / "pictures", 4)
    index = Index.build(tmp_path / "x", images, model=model)
    (tmp_path / "x" / BACKGROUND).write_bytes(b"something else")
    with pytest.raises(UserError, match=f"x/{BACKGROUND} is no background"):
        index.search(images)


def test_an_index_of_version_0_1_is_searched_and_grown(model, tmp_path):
    images = make_images(tmp_path / "pictures", 4)
    Index.build(tmp_path / "x", images, model=model, normalised=False)
    path = tmp_path / "x" / MANIFEST
    stored = json.loads(path.read_text())
    del stored["normalised"]
    old = {name: stored["calibration"][name] for name in ("offset", "exponent", "references")}
    stored |= {"format": 3, "calibration": {**old, "measured_on": "a set"}}
    path.write_text(json.dumps(stored))
    (names,) = (tmp_path / "x" / "segments").glob("*.ids.json")
    names.write_text(json.dumps(json.loads(names.read_text())["ids"]))
    make_images(images, 5)
    index = Index(tmp_path / "x")
    matches = index.search(images, k=1)
    assert len(matches) == 5 and {match.path for match in matches} == {""}
    assert index.add(images).added == 1
    assert Index(tmp_path / "x").scoring().background is None


def test_groups_by_normalised_scores():
    # Two images that resemble the background as much as one another, and two that resemble each other alone.
    centre, apart = np.eye(4, dtype=np.float32)[:2]
    rng = np.random.default_rng(0)
    near = lambda row, noise: row + noise * rng.standard_normal((2, 4)).astype(np.float32)  # noqa: E731
    rows = np.concatenate(
        [
            near(centre, 0.15),
            near(apart, 0.15),
            apart[None],
            apart[None],
            centre[None],
            centre[None],
        ]
    )
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    background = np.concatenate([near(centre, 0.15), near(centre, 0.15)])
    background /= np.linalg.norm(background, axis=1, keepdims=True)
    ids = [f"p{i}" for i in range(8)]
    plain = groups_of(ids, ids, rows, 0.8)
    assert {group.ids for group in plain} == {("p0", "p1", "p6", "p7"), ("p2", "p3", "p4", "p5")}
    found = groups_of(ids, ids, rows, 0.5, Scoring(background))
    # Equal ones stay copies of each other.
    assert {group.ids for group in found} == {("p6", "p7"), ("p2", "p3", "p4", "p5")}
