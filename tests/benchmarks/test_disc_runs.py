import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from rdcd_jax.benchmarks.disc_runs import evaluate_disc, evaluate_disc_files
from rdcd_jax.benchmarks.ground_truth import DiscLayout, read_ground_truth
from rdcd_jax.benchmarks.record import read_record
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.descriptors import read_descriptors, write_descriptors
from rdcd_jax.embedding.parts import Embedded
from rdcd_jax.embedding.service import embed_to_file
from rdcd_jax.embedding.stream import Embedder, embed_images
from rdcd_jax.images.sources import find_images
from rdcd_jax.report.matches import draw_matches, match_rows
from rdcd_jax.search import backends
from rdcd_jax.search.calibration import read_calibration


class Thumbnails:
    """Embeds an image by its own pixels, made small."""

    name = fingerprint = "thumbnails"
    image_size, short_edge = 16, False

    def __init__(self):
        self.shapes = set()

    def embed_batch(self, images):
        assert images.dtype == np.uint8
        self.shapes.add(images.shape)
        small = images.reshape(len(images), 4, 4, 4, 4, 3).mean(axis=(2, 4))
        rows = small.reshape(len(images), -1).astype(np.float32) - 127
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)


def save(path, seed, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(path)


@pytest.fixture
def root(tmp_path):
    """Twelve references, of which the first five are queries too, and three distractors."""
    for i in range(12):
        save(tmp_path / "data" / "references" / f"R{i}.png", i)
        save(tmp_path / "data" / "train" / f"T{i}.png", 100 + i)
    for i in range(8):
        seed = i if i < 5 else 50 + i
        save(tmp_path / "data" / "queries" / f"Q {i} é.png", seed, size=(60, 60))
    lines = [f"Q {i} é,{f'R{i}' if i < 5 else ''}\n" for i in range(8)]
    (tmp_path / "data" / "ground_truth.csv").write_text("".join(lines), encoding="utf-8")
    return tmp_path / "data"


def test_embed_to_file(root, tmp_path):
    model, stored = Thumbnails(), []
    out = tmp_path / "out" / "r.npz"
    found = embed_to_file(
        model, root / "references", out, batch_size=5, on_progress=lambda *each: stored.append(each)
    )
    assert model.shapes == {(5, 16, 16, 3)}
    assert [done for _, done, total in stored if total == 12] == [0, 5, 10, 12]
    assert found == Embedded(12, 48, [])
    assert [path.name for path in out.parent.iterdir()] == ["r.npz"]
    read = read_descriptors(out)
    assert read.model == "thumbnails"
    assert read.ids.tolist() == list(find_images(root / "references").ids)
    alone = tmp_path / "alone.txt"
    alone.write_text(str(root / "references" / "R7.png"))
    embed_to_file(model, alone, tmp_path / "one.npz", batch_size=5)
    row = read.descriptors[read.ids.tolist().index("R7")]
    single = read_descriptors(tmp_path / "one.npz")
    np.testing.assert_array_equal(single.descriptors[0], row)


def test_unreadable_images_are_listed_and_left_out(root, tmp_path):
    (root / "references" / "R11.png").write_bytes(b"not a picture")
    whole = (root / "references" / "R0.png").read_bytes()
    (root / "references" / "R0.png").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "r.npz"
    found = embed_to_file(Thumbnails(), root / "references", out, batch_size=5)
    assert sorted(each.id for each in found.unreadable) == ["R0", "R11"]
    assert len(read_descriptors(out)) == found.count == 10
    listed = (tmp_path / "r.npz.unreadable.txt").read_text().splitlines()
    assert len(listed) == 2
    assert all("R0.png" in line or "R11.png" in line for line in listed)
    rows, _, _ = evaluate_disc(Thumbnails(), root, tmp_path / "out", backend="numpy")
    # The pair of the lost reference counts as missed.
    assert rows[0].metrics.recall_at_1 == pytest.approx(0.8)
    assert len((tmp_path / "out" / "unreadable.txt").read_text().splitlines()) == 2


def test_a_source_without_a_readable_image_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 1 images can be read; the first: .*a\.jpg"):
        embed_to_file(Thumbnails(), tmp_path, tmp_path / "out.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def test_a_model_that_gives_nan_is_refused(root):
    with pytest.raises(UserError, match="embeds 8 of 8 images by NaN"):
        embed_images(
            Embedder(lambda images: np.full((len(images), 3), np.nan), 16),
            find_images(root / "queries"),
        )


def test_evaluation_of_a_folder_and_of_its_descriptors(root, tmp_path):
    out = tmp_path / "out"
    rows, predictions, unreadable = evaluate_disc(
        Thumbnails(), root, out, codecs="Flat;L2norm,Flat", batch_size=5
    )
    assert unreadable == []
    assert [row.score_norm for row in rows] == ["None", "1.0[0,2]"] * 2
    assert rows[0].metrics.average_precision == 1.0
    assert json.loads((out / "metrics.json").read_text())[0]["uAP"] == 1.0
    assert not (out / "unreadable.txt").exists()
    kept = out / "descriptors"
    again, same, _ = evaluate_disc_files(
        kept / "queries.npz",
        kept / "references.npz",
        root / "ground_truth.csv",
        tmp_path / "again",
        training=kept / "training.npz",
        codecs="Flat;L2norm,Flat",
    )
    for name in ("disc_metrics.csv", "metrics.json", "predictions.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    np.testing.assert_array_equal(same.scores, predictions.scores)
    assert len(again) == len(rows)
    # What a report is made of.
    of_folder, of_files = read_record(out), read_record(tmp_path / "again")
    assert dict(of_folder.images) == {name: str(root / name) for name in ("queries", "references")}
    assert (of_folder.image_size, of_folder.measured_on) == (16, "data")
    assert (of_files.image_size, of_files.measured_on) == (None, "ground_truth.csv")
    assert of_files.images == {}
    for record in (of_folder, of_files):
        assert [row.figures["uAP"] for row in record.rows] == [
            row.metrics.average_precision for row in rows
        ]


def test_queries_that_no_line_names_are_told_of(root, tmp_path, caplog):
    truth, kept = root / "ground_truth.csv", tmp_path / "all" / "descriptors"
    evaluate_disc(Thumbnails(), root, tmp_path / "all", score_norm="None")
    # A list of pairs alone says nothing of the others.
    assert not caplog.records
    files = kept / "queries.npz", kept / "references.npz", truth
    ids = read_descriptors(files[0]).ids.tolist()
    pair, distractor, *unnamed = ids
    truth.write_text(f"{pair},R0\n{distractor},\n", encoding="utf-8")
    told = f"does not name {len(unnamed)} of the {len(ids)} queries, such as {unnamed[0]}; they"
    evaluate_disc(Thumbnails(), root, tmp_path / "all", score_norm="None")
    evaluate_disc_files(*files, tmp_path / "again", score_norm="None")
    assert [told in each.getMessage() for each in caplog.records] == [True, True]


def test_evaluation_writes_what_a_score_means(root, tmp_path):
    out = tmp_path / "out"
    evaluate_disc(Thumbnails(), root, out, score_norm="None")
    found = read_calibration(out / "calibration.json")
    assert (found.references, found.measured_on) == (12, "data")
    # Copies are the very same images here.
    assert found.probability(1.0, 12) > 0.8 > 0.1 > found.probability(0.0, 12)
    kept = out / "descriptors"
    files = kept / "queries.npz", kept / "references.npz", root / "ground_truth.csv"
    evaluate_disc_files(*files, tmp_path / "again")
    again = read_calibration(tmp_path / "again" / "calibration.json")
    assert again == dataclasses.replace(found, measured_on="ground_truth.csv")
    # Where copies score lowest nothing can be reported, and what an earlier run reported does not stay.
    opposite = read_descriptors(kept / "queries.npz")
    opposite = dataclasses.replace(opposite, descriptors=-opposite.descriptors)
    write_descriptors(kept / "opposite.npz", opposite)
    (root / "ground_truth.csv").write_text("Q 0 é,R0\n", encoding="utf-8")
    evaluate_disc_files(kept / "opposite.npz", *files[1:], tmp_path / "again")
    assert not (tmp_path / "again" / "calibration.json").exists()


def test_ndec_is_evaluated_as_disc_is(root, tmp_path):
    rows, _, _ = evaluate_disc(Thumbnails(), root, tmp_path / "disc", backend="numpy")
    (root / "queries").rename(root / "query_images_h5")
    (root / "ground_truth.csv").rename(root / "public_ground_truth_h5.csv")
    again, _, _ = evaluate_disc(
        Thumbnails(), root, tmp_path / "ndec", benchmark="ndec", backend="numpy"
    )
    assert [row.cells() for row in again] == [row.cells() for row in rows]
    tables = tmp_path / "ndec" / "ndec_metrics.csv", tmp_path / "disc" / "disc_metrics.csv"
    assert tables[0].read_bytes() == tables[1].read_bytes()
    assert not (tmp_path / "ndec" / "disc_metrics.csv").exists()


def test_an_evaluation_that_was_ended_goes_on(root, tmp_path, monkeypatch):
    whole, _, _ = evaluate_disc(Thumbnails(), root, tmp_path / "whole", batch_size=5)
    embed, given = Thumbnails.embed_batch, []

    def ending(self, images):
        given.append(len(images))
        # In the training images, after two batches of queries and three of references.
        if len(given) == 6:
            raise KeyboardInterrupt
        return embed(self, images)

    monkeypatch.setattr(Thumbnails, "embed_batch", ending)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate_disc(Thumbnails(), root, out, batch_size=5)
    other = Thumbnails()
    other.image_size = 8
    with pytest.raises(UserError, match=r"queries\.npz\.parts holds parts of another"):
        evaluate_disc(other, root, out)
    rows, _, _ = evaluate_disc(Thumbnails(), root, out, batch_size=5)
    assert len(given) == 6 + 3
    assert [row.cells() for row in rows] == [row.cells() for row in whole]
    assert sorted(path.name for path in (out / "descriptors").iterdir()) == [
        "queries.npz",
        "references.npz",
        "training.npz",
    ]


def test_a_mistake_in_the_codec_costs_no_descriptors(root, tmp_path):
    given, out = [], tmp_path / "out"

    class Counting(Thumbnails):
        def embed_batch(self, images):
            given.append(len(images))
            return super().embed_batch(images)

    with pytest.raises(UserError, match="cannot keep 999 dimensions"):
        evaluate_disc(Counting(), root, out, codecs="PCAW999,L2norm,Flat")
    embedded = len(given)
    evaluate_disc(Counting(), root, out)
    assert len(given) == embedded
    assert not list((out / "descriptors").glob("*.parts"))


def test_the_ground_truth_is_not_written_over(root, tmp_path):
    truth = (root / "ground_truth.csv").rename(root / "pairs.csv")
    layout = DiscLayout(root / "queries", root / "references", None, truth)
    before = truth.read_bytes()
    with pytest.raises(
        UserError, match=r"pairs.csv is the ground truth, and the evaluation writes"
    ):
        evaluate_disc(Thumbnails(), layout, root)
    assert truth.read_bytes() == before


def test_files_that_are_not_read_as_images_are_told_of(root, tmp_path, caplog):
    (root / "references" / "R0.png").rename(root / "references" / "R0.heic")
    with pytest.raises(UserError, match="1 of the"):
        evaluate_disc(Thumbnails(), root, tmp_path / "out")
    assert "references: left out, since they are not read as images: 1 .heic" in caplog.text


def test_training_images_are_embedded_only_where_needed(root, tmp_path):
    rows, _, _ = evaluate_disc(Thumbnails(), root, tmp_path / "out", score_norm="None")
    assert len(rows) == 1
    assert not (tmp_path / "out" / "descriptors" / "training.npz").exists()
    # One that was named must be there all the same.
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        evaluate_disc(Thumbnails(), root, tmp_path / "other", training="nowhere", score_norm="None")


def test_mistakes_are_reported_before_images_are_embedded(root, tmp_path):
    def run(**settings):
        model = Thumbnails()
        with pytest.raises(UserError) as caught:
            evaluate_disc(model, root, tmp_path / "out", **settings)
        assert not model.shapes
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "unknown codec 'IVF'" in run(codecs="IVF")
    assert "unknown score normalisation" in run(score_norm="1.0")
    assert "exact search" in run(backend="jax_approx")
    assert "no benchmark 'DISC'; use one of disc, ndec" in run(benchmark="DISC")
    save(tmp_path / "few" / "T0.png", 1)
    assert "needs at least 3 training descriptors, but there are 1" in run(
        training=tmp_path / "few", score_norm="1.0[0,2]"
    )
    assert "k is 13, but queries are compared with 12 images only" in run(k=13)
    with (root / "ground_truth.csv").open("a") as file:
        file.write("Q99,R1\n")
    assert "1 of the 9 queries named" in run()
    (root / "ground_truth.csv").unlink()
    assert "no ground-truth file" in run()


def test_files_of_different_models_are_refused_by_name(root, tmp_path):
    evaluate_disc(Thumbnails(), root, tmp_path / "out", score_norm="None")
    kept = tmp_path / "out" / "descriptors"
    other = dataclasses.replace(
        read_descriptors(kept / "references.npz"), model="other", fingerprint="x"
    )
    write_descriptors(tmp_path / "other.h5", other)
    with pytest.raises(UserError, match=r"queries\.npz was .* 'thumbnails' and .*other\.h5 by"):
        evaluate_disc_files(
            kept / "queries.npz",
            tmp_path / "other.h5",
            root / "ground_truth.csv",
            tmp_path / "x",
        )


def test_image_of_matches(root, tmp_path):
    _, predictions, _ = evaluate_disc(Thumbnails(), root, tmp_path / "out", score_norm="None")
    truth = read_ground_truth(root / "ground_truth.csv")
    images = find_images(root / "queries"), find_images(root / "references")
    rows = match_rows(predictions, truth, n_queries=3, n_found=4)
    assert [row.query for row in rows] == ["Q 0 é", "Q 1 é", "Q 3 é"]
    assert [found.is_right for found in rows[2].found] == [True, False, False, False]
    assert rows[2].found[0].id == "R3"
    draw_matches(tmp_path / "matches.png", rows, *images)
    with Image.open(tmp_path / "matches.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert {(10, 138, 58), (209, 54, 28)} <= colours
    with pytest.raises(UserError, match="no matches"):
        draw_matches(tmp_path / "none.png", [], *images)


def test_predictions_csv_keeps_names(root, tmp_path):
    evaluate_disc(Thumbnails(), root, tmp_path / "out", score_norm="None", k=1)
    with (tmp_path / "out" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert {line["query_id"] for line in lines} == {f"Q {i} é" for i in range(8)}


def test_a_name_of_several_lines_is_listed_on_one(root, tmp_path):
    (root / "references" / "two\nlines.png").write_bytes(b"broken")
    embed_to_file(Thumbnails(), root / "references", tmp_path / "r.npz")
    (line,) = (tmp_path / "r.npz.unreadable.txt").read_text().splitlines()
    assert "two\\nlines.png" in line


def test_the_calibration_needs_no_search_of_its_own(root, tmp_path, monkeypatch):
    searched, knn = [], backends.knn

    def counting(queries, database, k, *more):
        searched.append((len(queries), len(database), k))
        return knn(queries, database, k, *more)

    monkeypatch.setattr(backends, "knn", counting)
    evaluate_disc(Thumbnails(), root, tmp_path / "out", score_norm="None")
    assert (tmp_path / "out" / "calibration.json").is_file() and len(searched) == 1
