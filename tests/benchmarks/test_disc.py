import csv
import dataclasses
import json

import numpy as np
import pytest

from rdcd_jax.benchmarks.disc import evaluate_descriptors, write_disc_results
from rdcd_jax.benchmarks.ground_truth import GroundTruth
from rdcd_jax.benchmarks.settings import Settings
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.descriptors import Descriptors


def named(prefix, rows):
    return Descriptors(np.array([f"{prefix}{i}" for i in range(len(rows))]), rows, "m")


@pytest.fixture(scope="module")
def disc(vectors):
    g = vectors("g_scorenorm_pcaw")
    pairs = tuple((f"Q{q}", f"R{r}") for q, r in g["gt"])
    truth = GroundTruth("gt.csv", pairs, ())
    return g, named("Q", g["query"]), named("R", g["ref"]), named("T", g["train"]), truth


@pytest.mark.parametrize("backend", ["jax", "scann", "numpy"])
def test_the_references_table(disc, backend):
    g, queries, references, training, truth = disc
    expected = {
        (codec, norm, metric): values
        for codec, norm, metric, values in zip(
            g["table_codec"].tolist(),
            g["table_score_norm"].tolist(),
            g["table_metric"].tolist(),
            g["table_values_uAP_acc1_rp90_r10"],
            strict=True,
        )
    }
    seen = set()
    for metric in ("ip", "ip_global"):
        cases = [case for case in expected if case[2] == metric]
        norms = list(dict.fromkeys(norm for _, norm, _ in cases))
        rows, _ = evaluate_descriptors(
            queries,
            references,
            training,
            truth,
            Settings(
                codecs=list(dict.fromkeys(codec for codec, _, _ in cases)),
                score_norms=[None if norm == "None" else norm for norm in norms],
                global_candidates=metric == "ip_global",
                backend=backend,
            ),
        )
        for row in rows:
            figures = row.metrics
            got = [figures.average_precision, figures.recall_at_1]
            got += [figures.recall_at_p90 or 0.0, figures.recall_at_10]
            values = expected[row.codec, row.score_norm, metric]
            compared = 3 if metric == "ip_global" else 4
            # Whitening all 64 directions magnifies the reference's float32 rounding until some
            # pairs of nearly equal score change positions.
            atol = 2e-4 if row.codec == "PCAW64,L2norm,Flat" else 1e-12
            np.testing.assert_allclose(got[:compared], values[:compared], rtol=0, atol=atol)
            seen.add((row.codec, row.score_norm, metric))
    # The others are by distance: see test_distances.py.
    assert seen == {case for case in expected if not case[2].startswith("l2")}


@pytest.mark.parametrize("codec", ["Flat", "PCAW64,L2norm,Flat", "PCAW32,L2norm,Flat"])
@pytest.mark.parametrize("norm", [None, "1.0[0,2]"])
def test_the_references_neighbours(disc, codec, norm):
    g, queries, references, training, truth = disc
    _, predictions = evaluate_descriptors(
        queries, references, training, truth, Settings([codec], [norm])
    )
    position = f"{codec.replace(',', '_')}/sn_{norm}"
    scores, ids = g[f"{position}/ip_knn_scores"], g[f"{position}/ip_knn_ids"]
    assert len(predictions.scores) == ids.size
    assert (np.diff(predictions.scores) <= 0).all()
    for i, query in enumerate(queries.ids):
        mine = predictions.query_ids == query
        np.testing.assert_allclose(predictions.scores[mine], scores[i], rtol=0, atol=2e-5)
        # Neighbours nearer to each other than the reference's rounding may change positions.
        clear = np.abs(np.diff(scores[i], prepend=np.inf, append=-np.inf)) > 4e-5
        clear = clear[:-1] & clear[1:]
        clear[-1] = False
        assert clear.sum() >= 5
        expected = np.array([f"R{j}" for j in ids[i]])
        assert (predictions.reference_ids[mine] == expected)[clear].all()


def test_predictions_are_those_of_the_last_row(disc):
    _, queries, references, training, truth = disc
    settings = Settings(["Flat", "PCAW32,L2norm,Flat"], [None, "1.0[0,2]"])
    rows, predictions = evaluate_descriptors(queries, references, training, truth, settings)
    assert [(row.codec, row.score_norm) for row in rows] == [
        ("Flat", "None"),
        ("Flat", "1.0[0,2]"),
        ("PCAW32,L2norm,Flat", "None"),
        ("PCAW32,L2norm,Flat", "1.0[0,2]"),
    ]
    np.testing.assert_array_equal(rows[-1].metrics.thresholds, predictions.scores)


def test_files(tmp_path, disc):
    _, queries, references, training, truth = disc
    rows, predictions = evaluate_descriptors(
        queries,
        references,
        training,
        truth,
        Settings(["PCAW32,L2norm,Flat", "PCAW16,L2norm,Flat"]),
    )
    write_disc_results(tmp_path / "out", rows, predictions)
    with (tmp_path / "out" / "disc_metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["codec", "score_norm", "uAP", "accuracy-at-1", "recall-at-p90"]
    assert float(table[0]["uAP"]) == rows[0].metrics.average_precision
    # PCAW16 never reaches a precision of 0.9 here.
    assert (table[0]["recall-at-p90"] != "", table[1]["recall-at-p90"]) == (True, "")
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written == [row.cells() for row in rows]
    assert written[1]["recall-at-p90"] is None
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["query_id", "reference_id", "score"]
    assert len(lines) == 1 + 10 * len(queries)
    assert np.float32(lines[1][2]) == predictions.scores[0]


def test_k_and_unreadable_images(disc):
    _, queries, references, _, truth = disc
    few = Descriptors(references.ids[:4], references.descriptors[:4], "m")
    with pytest.raises(UserError, match=r"gt\.csv: \d+ of the \d+ references"):
        evaluate_descriptors(queries, few, None, truth)
    rows, predictions = evaluate_descriptors(
        queries, few, None, truth, unreadable=references.ids[4:]
    )
    assert len(predictions.scores) == 4 * len(queries)
    assert len(rows[0].metrics.true_ranks) == len(truth.pairs)
    # Fewer references than k only because of those that are unreadable.
    _, same = evaluate_descriptors(
        queries, few, None, truth, Settings(k=5), unreadable=references.ids[4:]
    )
    np.testing.assert_array_equal(same.scores, predictions.scores)
    with pytest.raises(UserError, match="k is 301, but queries are compared with 300 images"):
        evaluate_descriptors(queries, references, None, truth, Settings(k=301))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"codecs": ["PCAW8,L2norm,Flat"]}, "'PCAW8,L2norm,Flat' is fitted on a training set"),
        ({"score_norms": [None, "1.0[0,2]"]}, "'1.0.0,2.' is fitted on a training set"),
        ({"codecs": []}, "at least one codec"),
        ({"k": 0}, "k is 0"),
        ({"backend": "scann_ah"}, "'scann_ah' is none"),
    ],
)
def test_settings_that_cannot_work_are_refused(disc, change, sentence):
    _, queries, references, _, truth = disc
    with pytest.raises(UserError, match=sentence):
        evaluate_descriptors(queries, references, None, truth, Settings(**change))


def test_descriptors_of_other_models_are_refused(disc):
    _, queries, references, _, truth = disc
    other = dataclasses.replace(references, model="other")
    with pytest.raises(UserError, match="the query set was embedded by 'm' and the reference set"):
        evaluate_descriptors(queries, other, None, truth)
