import json

import numpy as np
import pytest
from report_support import HOSTILE, HOSTILE_EDIT, evaluate, made_up

from rdcd_jax.benchmarks.record import read_record, singular_values
from rdcd_jax.core.errors import UserError


def test_what_is_read_is_what_was_written(tmp_path):
    rows, predictions = evaluate(tmp_path, first_query=HOSTILE)
    _, references, truth, _ = made_up(first_query=HOSTILE)
    read = read_record(tmp_path)
    assert (read.model, read.dim, read.image_size, read.images) == ("toy", 32, None, {})
    assert (read.queries, read.references, read.measured_on) == (30, 40, "made up")
    assert (read.truth.pairs, read.truth.distractors) == (truth.pairs, truth.distractors)
    assert read.truth.edits == truth.edits and HOSTILE_EDIT in read.truth.edits[HOSTILE]
    np.testing.assert_array_equal(read.predictions.query_ids, predictions.query_ids)
    np.testing.assert_array_equal(read.predictions.reference_ids, predictions.reference_ids)
    np.testing.assert_array_equal(read.predictions.scores, predictions.scores)
    spectrum = np.linalg.svd(references - references.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(read.singular_values, spectrum, rtol=1e-5)
    for kept, row in zip(read.rows, rows, strict=True):
        assert (kept.codec, kept.score_norm) == (row.codec, row.score_norm)
        assert kept.figures["uAP"] == row.metrics.average_precision
        assert kept.figures["score-at-p90"] == row.metrics.threshold_at_p90
        assert kept.figures["recall-at-10"] == row.metrics.recall_at_10
        # The area under the copies' points is the average precision itself.
        steps = np.diff(kept.curve[:, 2], prepend=0)
        assert (steps * kept.curve[:, 1]).sum() == pytest.approx(row.metrics.average_precision)
        assert (np.diff(kept.curve[:, 0]) <= 0).all()


def test_a_codec_given_twice_has_one_curve(tmp_path):
    evaluate(tmp_path, codecs=("Flat", "Flat"))
    first, second = read_record(tmp_path).rows
    np.testing.assert_array_equal(first.curve, second.curve)
    assert (np.diff(first.curve[:, 2]) > 0).all()


def test_singular_values_of_few_and_of_equal_rows():
    rows = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    expected = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    found = singular_values(rows)
    np.testing.assert_allclose(found[:2], expected[:2], rtol=1e-5)
    assert found.shape == (5,) and (found[2:] < 1e-5).all()
    assert (singular_values(np.ones((4, 3), np.float32)) == 0).all()


@pytest.mark.parametrize("name", ["predictions.csv", "pairs.csv", "curves.csv"])
def test_files_of_another_evaluation_are_refused(tmp_path, name):
    evaluate(tmp_path)
    (tmp_path / name).write_text((tmp_path / name).read_text() + "Q1,R9,0.5\n")
    with pytest.raises(UserError, match=rf"{name}: is not the file .* evaluate again"):
        read_record(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"cannot be read .*{name}.* evaluate again"):
        read_record(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}', "[" * 100_000])
def test_a_damaged_record_is_refused(tmp_path, text):
    evaluate(tmp_path)
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(UserError, match=r"evaluation\.json: cannot be read as an evaluation"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rows", 3),
        ("rows", [{}]),
        ("rows", []),
        ("singular_values", "x"),
        ("numbers", None),
        ("pictures", []),
    ],
)
def test_a_record_of_another_form_is_refused(tmp_path, field, value):
    evaluate(tmp_path)
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    (tmp_path / "evaluation.json").write_text(json.dumps(stored | {field: value}))
    with pytest.raises(UserError, match="cannot be read as an evaluation"):
        read_record(tmp_path)


def test_no_record_an_older_one_and_a_newer_one_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_record(tmp_path / "none")
    evaluate(tmp_path)
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    (tmp_path / "evaluation.json").write_text(json.dumps(stored | {"format": 2}))
    with pytest.raises(UserError, match="newer version"):
        read_record(tmp_path)
    (tmp_path / "evaluation.json").unlink()
    with pytest.raises(UserError, match=r"holds no evaluation\.json.* evaluate again"):
        read_record(tmp_path)
