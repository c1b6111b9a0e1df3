import numpy as np
import pytest

from rdcd_jax.benchmarks.metrics import (
    NOT_RETRIEVED,
    evaluate,
    macro_average_precision,
    pooled_precision_recall,
    trapezoid_average_precision,
)
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.processor import instructions

CASES = [
    "random",
    "ties",
    "heavy_ties",
    "all_equal_scores",
    "no_positive_retrieved",
    "p90_never",
    "missing_and_unpredicted_queries",
    "few_gt",
    "perfect",
    "multi_gt",
    "float32_scores",
    "single_true",
    "single_false",
]
FIGURES = {
    "average_precision": "ap",
    "recall_at_p90": "recall_at_p90",
    "threshold_at_p90": "threshold_at_p90",
    "recall_at_1": "recall_at_rank1",
    "recall_at_10": "recall_at_rank10",
    "precisions": "precisions",
    "recalls": "recalls",
    "thresholds": "thresholds",
    "true_ranks": "tp_ranks",
}


@pytest.mark.parametrize("case", CASES)
def test_every_figure_of_the_challenge_evaluation(vectors, case):
    f = vectors("f_isc_metrics")
    metrics = evaluate(
        f[f"{case}_gt"], f[f"{case}_pred_q"], f[f"{case}_pred_r"], f[f"{case}_pred_score"]
    )
    for name, key in FIGURES.items():
        expected, got = f[f"{case}_{key}"], getattr(metrics, name)
        if np.ndim(expected) == 0 and np.isnan(expected):
            assert got is None
        else:
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12, err_msg=name)
    # The challenge's earlier figure took the same curve's precisions one position too early.
    area = np.sum(np.diff(metrics.recalls) * metrics.precisions[:-1])
    assert area == pytest.approx(float(f[f"{case}_ap_old"]), abs=1e-12)


def test_what_the_challenge_evaluation_refuses(vectors):
    f = vectors("f_isc_metrics")
    stored = dict(zip(f["errors_names"].tolist(), f["errors_text"].tolist(), strict=True))
    assert stored["duplicates"].startswith("ValueError") and issubclass(UserError, ValueError)
    # There an empty ground truth gives NaN; here it is refused, see below.
    assert stored["empty_predictions"] == stored["empty_gt"] == "no exception"


def test_string_ids_and_shuffled_predictions_change_nothing(vectors):
    f = vectors("f_isc_metrics")
    order = np.random.default_rng(0).permutation(len(f["ties_pred_q"]))
    queries = [f"Q {q}" for q in f["ties_pred_q"][order]]
    references = np.array([f"é{r}" for r in f["ties_pred_r"][order]])
    truth = [(f"Q {q}", f"é{r}") for q, r in f["ties_gt"]]
    metrics = evaluate(truth, queries, references, f["ties_pred_score"][order].tolist())
    assert metrics.average_precision == pytest.approx(float(f["ties_ap"]), abs=1e-12)
    np.testing.assert_array_equal(metrics.true_ranks, f["ties_tp_ranks"])


def test_false_predictions_rank_before_true_ones_of_equal_score():
    truth = [("q", "a")]
    assert evaluate(truth, ["q", "q"], ["a", "b"], [1, 1]).average_precision == 0.5
    assert evaluate(truth, ["q", "q"], ["a", "b"], [1, 1]).recall_at_1 == 0
    assert evaluate(truth, ["q", "p"], ["a", "b"], [1, 1]).recall_at_1 == 1


def test_without_predictions_nothing_is_found_at_any_precision():
    metrics = evaluate([("q", "a")], [], [], [])
    assert metrics.average_precision == metrics.recall_at_1 == metrics.recall_at_10 == 0
    assert metrics.recall_at_p90 is metrics.threshold_at_p90 is None
    assert metrics.precisions.shape == metrics.recalls.shape == metrics.thresholds.shape == (0,)
    assert metrics.true_ranks.tolist() == [NOT_RETRIEVED]


@pytest.mark.parametrize(
    ("truth", "queries", "references", "scores", "sentence"),
    [
        ([("q", "a")], ["q", "q"], ["a", "a"], [1, 2], "predictions contain duplicates.*q.*a"),
        ([("q", "a"), ("q", "a")], ["q"], ["a"], [1], "ground truth contain duplicates"),
        ([], ["q"], ["a"], [1], "ground truth holds no pair"),
        ([("q", "a")], ["q"], ["a"], [float("nan")], "prediction 0 has the score nan"),
        ([("q", "a")], ["q"], ["a", "b"], [1], "1, 2 and 1"),
    ],
)
def test_bad_input_is_refused(truth, queries, references, scores, sentence):
    with pytest.raises(UserError, match=sentence):
        evaluate(truth, queries, references, scores)


@pytest.mark.parametrize("i", range(8))
def test_copydays_figure_of_one_query(vectors, i):
    h = vectors("h_copydays")
    got = trapezoid_average_precision(h[f"ap{i}_ranks"], int(h[f"ap{i}_nres"]))
    assert got == pytest.approx(float(h[f"ap{i}_value"]), abs=1e-12)
    again = trapezoid_average_precision(h[f"ap{i}_ranks"][::-1].tolist(), int(h[f"ap{i}_nres"]))
    assert again == got


@pytest.mark.parametrize("i", range(3))
def test_copydays_figure_of_all_queries(vectors, i):
    h = vectors("h_copydays")
    relevance, distances, positives = (h[f"macro{i}_{name}"] for name in ("gnd", "dis", "totpos"))
    # Which of equal distances comes first depends on the CPU: the area is between those of true ones last and first.
    worst, best = (
        macro_average_precision(relevance, distances + sign * 1e-9 * relevance, int(positives))
        for sign in (1, -1)
    )
    got = macro_average_precision(relevance, distances, int(positives))
    expected = pytest.approx(float(h[f"macro{i}_AP"]), abs=1e-12)
    for value in (got, expected.expected):
        assert worst - 1e-12 <= value <= best + 1e-12
    if "avx2" in instructions():
        assert got == expected
    # After all of some equal ones the curve has one value whatever their order.
    ends = np.diff(np.sort(distances, axis=None), append=np.inf) > 0
    curve = pooled_precision_recall(relevance.astype(bool), distances, int(positives))
    for values, name in zip(curve, ("precision", "recall"), strict=True):
        np.testing.assert_allclose(values[ends], h[f"macro{i}_{name}"][ends], rtol=0, atol=1e-12)
    # In the reference's own order, which its curve tells, all is the reference's on any CPU.
    order = np.round(np.diff(h[f"macro{i}_recall"] * positives, prepend=0))
    places = np.arange(order.size)
    assert macro_average_precision(order, places, int(positives)) == expected
    curve = pooled_precision_recall(order, places, int(positives))
    for values, name in zip(curve, ("precision", "recall"), strict=True):
        np.testing.assert_allclose(values, h[f"macro{i}_{name}"], rtol=0, atol=1e-12)


def test_copydays_figures_refuse_what_cannot_be():
    one = np.ones((1, 2))
    with pytest.raises(UserError, match="there are 0 positives"):
        trapezoid_average_precision([], 0)
    with pytest.raises(UserError, match="there are 0 positives"):
        macro_average_precision(one, one, 0)
    with pytest.raises(UserError, match=r"not .1, 2. and .2, 1."):
        macro_average_precision(one, one.T, 2)
    with pytest.raises(UserError, match="distances hold NaN"):
        macro_average_precision(one, one * np.nan, 2)
