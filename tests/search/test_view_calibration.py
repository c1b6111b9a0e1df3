"""Calibrations without labels: what reaches the threshold is as often a copy as promised."""

import numpy as np
import pytest

from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.codecs import unit_rows
from rdcd_jax.search.calibration import fit_calibration, read_calibration
from rdcd_jax.search.score_norm import DEFAULT, query_adjustment
from rdcd_jax.search.view_calibration import calibrate_on_views

DIM = 24


def drawn(rng, count):
    """Images in a crowded half of the space, and edited views of them; some edits leave little."""
    rows = unit_rows(rng.normal(size=(count, DIM)).astype(np.float32) + 0.3)
    noise = rng.normal(size=rows.shape) * rng.uniform(0, 0.6, size=(count, 1))
    return rows, unit_rows((rows + noise).astype(np.float32))


@pytest.mark.parametrize("normalised", [False, True])
def test_it_is_what_labels_of_other_images_give(normalised):
    rng = np.random.default_rng(1)
    unedited, edited = drawn(rng, 1200)
    stored = calibrate_on_views(unedited, edited, background=1200 if normalised else 0)
    calibration = read_calibration(stored, normalised=normalised)
    assert calibration.references == 150
    assert "1,200 training images" in calibration.measured_on

    references, copies = drawn(rng, 300)
    queries = np.concatenate([copies, drawn(rng, 300)[1]])
    scores = queries @ references.T
    if normalised:
        scores += query_adjustment(queries, unedited, DEFAULT)[:, None]
    nearest = np.argsort(-scores, axis=1)[:, :10]
    labelled = fit_calibration(
        np.take_along_axis(scores, nearest, axis=1).ravel(),
        (nearest == np.arange(600)[:, None]).ravel(),
        references=300,
        measured_on="labels",
        score_norm=DEFAULT if normalised else "",
    )
    assert calibration.threshold(0.9, 300) == pytest.approx(labelled.threshold(0.9, 300), abs=0.04)
    at = np.asarray([labelled.threshold(level, 300) for level in (0.6, 0.8, 0.95)])
    np.testing.assert_allclose(
        calibration.probability(at, 300), labelled.probability(at, 300), atol=0.12
    )


def test_versions_of_an_image_count_neither_as_right_nor_as_wrong():
    rng = np.random.default_rng(2)
    unedited, edited = drawn(rng, 600)
    alone = read_calibration(calibrate_on_views(unedited, edited, background=0))
    # Every image has a version of which nobody said whether it is a copy.
    version = unit_rows(unedited + 0.05 * rng.normal(size=unedited.shape).astype(np.float32))
    twice = np.concatenate([unedited, version]), np.concatenate([edited, edited])
    both = read_calibration(calibrate_on_views(*twice, background=0))
    assert abs(both.threshold(0.9, 300) - alone.threshold(0.9, 300)) < 0.05


def test_what_cannot_be_calibrated_is_said():
    rng = np.random.default_rng(3)
    with pytest.raises(UserError, match="takes 128 images; here are 90"):
        calibrate_on_views(*drawn(rng, 90), background=0)
    unedited, _ = drawn(rng, 200)
    with pytest.raises(UserError, match="needs right and wrong matches"):
        calibrate_on_views(unedited, -unedited, background=0)
