"""Probabilities by score hold on labelled matches that they were not fitted on."""

import dataclasses
import json

import numpy as np
import pytest

from rdcd_jax.core.errors import UserError
from rdcd_jax.index.matching import Asked
from rdcd_jax.search.calibration import Calibration, fit_calibration, read_calibration


def matches(count, seed, references=1000):
    """Best matches of queries of which half have a copy: its score, or the largest of chance's."""
    random = np.random.default_rng(seed)
    chance = np.max(random.normal(0.2, 0.1, (count, references)), axis=1)
    copy = np.where(random.random(count) < 0.5, random.normal(0.7, 0.15, count), -1)
    return np.maximum(chance, copy), copy > chance


def fitted(references=1000):
    scores, correct = matches(2000, 0, references)
    return fit_calibration(scores, correct, references=references, measured_on="made up")


def test_predicted_and_actual_precision_agree_on_other_matches():
    calibration = fitted()
    scores, correct = matches(4000, 1)
    for low, high in ((0, 0.5), (0.5, 0.6), (0.6, 1), (0, 1)):
        some = (scores >= low) & (scores < high)
        assert abs(calibration.probability(scores[some], 1000).mean() - correct[some].mean()) < 0.03


def test_a_larger_collection_needs_a_higher_score():
    calibration = fitted()
    assert calibration.probability(0.55, 4000) < calibration.probability(0.55, 1000)
    scores, correct = matches(2000, 2, references=4000)
    predicted = calibration.probability(scores, 4000)
    assert abs(predicted.mean() - correct.mean()) < 0.03
    small, large = (calibration.threshold(0.9, n) for n in (1000, 4000))
    assert small < large


@pytest.mark.parametrize("precision", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("references", [1000, 4000])
def test_that_share_of_what_reaches_a_threshold_are_copies(precision, references):
    calibration = fitted()
    scores, correct = matches(4000, 3, references)
    threshold = calibration.threshold(precision, references)
    actual = correct[scores >= threshold].mean()
    assert actual > precision - 0.03
    # Lower precisions are reached only among what is as unlike as the least similar copies, of which few are known.
    if precision >= 0.9:
        assert actual < precision + 0.03
        # Of matches one by one the least sure are to be as sure.
        assert threshold < dataclasses.replace(calibration, copies=()).threshold(
            precision, references
        )


@pytest.mark.parametrize("value", [90, -0.1, float("nan")])
def test_what_is_no_precision_is_refused(value):
    with pytest.raises(UserError, match=f"{value} is no precision; give a number from 0 to 1"):
        fitted().threshold(value, 1000)


@pytest.mark.parametrize("value", [75, -2.1, float("nan")])
def test_what_is_no_score_is_refused(value):
    with pytest.raises(UserError, match=f"{value} is no score; they run from -2 to 1"):
        Asked(1, value)
    assert Asked(1, -2).threshold == -2


def test_a_calibration_of_version_0_1_still_serves():
    old = {"offset": -2.185, "exponent": 3.525, "references": 1600, "measured_on": "minidisc"}
    calibration = read_calibration(old)
    score = calibration.threshold(0.9, 1600)
    assert calibration.probability(score, 1600) == pytest.approx(0.9)
    assert read_calibration(old, normalised=True) is None


def test_normalised_scores_may_be_below_zero():
    scores, correct = matches(2000, 0)
    plain = fit_calibration(scores, correct, references=1000, measured_on="made up")
    found = fit_calibration(
        scores - 0.5, correct, references=1000, measured_on="made up", score_norm="1.0[0,2]"
    )
    threshold = found.threshold(0.9, 1000)
    assert threshold == pytest.approx(plain.threshold(0.9, 1000) - 0.5, abs=0.03)
    some = scores - 0.5 >= -0.1
    assert abs(found.probability(scores[some] - 0.5, 1000).mean() - correct[some].mean()) < 0.03
    stored = {**dataclasses.asdict(plain), "normalised": dataclasses.asdict(found)}
    assert read_calibration(stored) == plain and read_calibration(stored, normalised=True) == found
    for mixed in (
        {**stored, "score_norm": "1.0[0,2]"},
        {**stored, "normalised": dataclasses.asdict(plain)},
    ):
        with pytest.raises(UserError, match="mixes normalised scores with others"):
            read_calibration(mixed, normalised=mixed["score_norm"] == "")


@pytest.mark.parametrize("score_norm", ["", "1.0[0,2]"])
def test_a_lowered_score_is_as_probable_as_its_own_among_more_images(score_norm):
    meaning = Calibration(-1.0, 3.0, 1000, "made up", score_norm=score_norm)
    scores = np.linspace(0.05, 0.95, 10).astype(np.float32)
    lowered = meaning.lowered(scores, 4)
    assert lowered.dtype == np.float32 and (lowered < scores).all()
    np.testing.assert_allclose(
        meaning.probability(lowered, 1000), meaning.probability(scores, 4000), rtol=1e-4
    )
    np.testing.assert_array_equal(meaning.lowered(scores, 1), scores)
    some = meaning.lowered(scores, np.where(np.arange(10) < 5, 1, 4))
    np.testing.assert_array_equal(some, np.where(np.arange(10) < 5, scores, lowered))
    # Equal images stay equal, whatever rounding made of them; nothing is lost at the other end.
    ends = meaning.lowered(np.float32([1.0, 1.0000001, -3.0]), 4)
    assert ends[:2].min() > 0.99999 and np.isfinite(ends).all()


def test_scores_at_both_ends_are_judged():
    calibration = fitted()
    assert calibration.threshold(0.9, 1000) < calibration.threshold(0.9, 10**9) < 1
    sure, never = calibration.probability(np.array([1.0 + 1e-7, -0.3]), 10**6)
    assert sure > 0.999 and never < 1e-6
    assert calibration.threshold(0.9, 10**30) == 0.999
    # A copy that the ground truth does not know must not change what the others tell.
    scores, correct = matches(2000, 0)
    scores, correct = np.append(scores, [1.0, -0.1]), np.append(correct, [False, True])
    found = fit_calibration(scores, correct, references=1000, measured_on="made up")
    assert abs(found.threshold(0.9, 1000) - calibration.threshold(0.9, 1000)) < 0.03


def test_a_file_comes_back_and_another_is_refused(tmp_path):
    calibration, path = fitted(), tmp_path / "calibration.json"
    stored = dataclasses.asdict(calibration)
    path.write_text(json.dumps(stored))
    assert read_calibration(path) == calibration == read_calibration(stored)
    for broken in (
        {},
        {**stored, "exponent": -1},
        {"offset": -9.0, "slope": 14.0, "references": 9, "measured_on": "a line"},
        {**stored, "offset": "much"},
        {**stored, "references": 0},
        {**stored, "copies": [0.5, float("nan")]},
        {**stored, "copies": 3},
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(UserError, match=r"calibration\.json is no calibration"):
            read_calibration(path)


def test_labels_of_one_kind_calibrate_nothing():
    with pytest.raises(UserError, match="right and wrong matches"):
        fit_calibration(np.ones(3), np.ones(3, bool), references=3, measured_on="x")
    with pytest.raises(UserError, match="copies score higher"):
        correct = np.array([True, False, False])
        fit_calibration(np.arange(3), correct, references=3, measured_on="x")
    with pytest.raises(ValueError, match="3 scores and 2 labels"):
        fit_calibration(np.ones(3), np.array([True, False]), references=3, measured_on="x")
