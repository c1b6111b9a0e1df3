import numpy as np
import pytest

from rdcd_jax.errors import UserError
from rdcd_jax.evaluation.metrics import NOT_RETRIEVED, evaluate

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


def test_without_predictions_every_figure_is_zero():
    metrics = evaluate([("q", "a")], [], [], [])
    assert metrics.average_precision == metrics.recall_at_p90 == metrics.recall_at_1 == 0
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
