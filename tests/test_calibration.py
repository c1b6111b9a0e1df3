"""Probabilities by score hold on labelled matches that they were not fitted on."""

import dataclasses
import json

import numpy as np
import pytest

from rdcd_jax.errors import UserError
from rdcd_jax.evaluation.calibration import fit_calibration, read_calibration


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
        assert abs(calibration.precision(scores[some], 1000).mean() - correct[some].mean()) < 0.03


def test_a_larger_collection_needs_a_higher_score():
    calibration = fitted()
    assert calibration.precision(0.55, 4000) < calibration.precision(0.55, 1000)
    scores, correct = matches(2000, 2, references=4000)
    predicted = calibration.precision(scores, 4000)
    assert abs(predicted.mean() - correct.mean()) < 0.03
    small, large = (calibration.threshold(0.9, n) for n in (1000, 4000))
    assert small < large
    assert calibration.precision(small, 1000) == pytest.approx(0.9, abs=0.02)


def test_scores_at_both_ends_are_judged():
    calibration = fitted()
    assert calibration.threshold(0.9, 1000) < calibration.threshold(0.9, 10**9) < 1
    sure, never = calibration.precision(np.array([1.0 + 1e-7, -0.3]), 10**6)
    assert sure > 0.999 and never < 1e-6
    assert calibration.threshold(0.9, 10**30) == 0.999
    # A copy that the ground truth does not know must not change what the others tell.
    scores, correct = matches(2000, 0)
    scores, correct = np.append(scores, [1.0, -0.1]), np.append(correct, [False, True])
    found = fit_calibration(scores, correct, references=1000, measured_on="made up")
    assert abs(found.threshold(0.9, 1000) - calibration.threshold(0.9, 1000)) < 0.03


def test_a_file_comes_back_and_another_is_refused(tmp_path):
    calibration, path = fitted(), tmp_path / "calibration.json"
    told = dataclasses.asdict(calibration)
    path.write_text(json.dumps(told))
    assert read_calibration(path) == calibration == read_calibration(told)
    for broken in (
        {},
        {**told, "exponent": -1},
        {"offset": -9.0, "slope": 14.0, "references": 9, "measured_on": "a line"},
        {**told, "offset": "much"},
        {**told, "references": 0},
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
