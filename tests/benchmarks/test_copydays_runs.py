import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from test_disc_runs import Thumbnails

from rdcd_jax.benchmarks.copydays_runs import evaluate_copydays_files, evaluate_copydays_run
from rdcd_jax.benchmarks.record import STRONG_MAP, read_record
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.descriptors import read_descriptors
from rdcd_jax.report.page import write_report


def save(path, seed, noise=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).uniform(0, 255, size=(4, 4, 3))
    other = np.random.default_rng(len(str(path))).uniform(0, 255, size=(4, 4, 3))
    mixed = (1 - noise) * pixels + noise * other
    Image.fromarray(mixed.astype(np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """Six originals with strong copies, of which one resembles another original, and one crop of each."""
    data = tmp_path / "data"
    for i in range(6):
        save(data / "original" / f"2{i:02d}000.png", i)
        save(data / "strong" / f"2{i:02d}001.png", i or 5)
        save(data / "crop" / "20" / f"2{i:02d}000.png", i, noise=0.2)
    for i in range(10):
        # Folders of distractors may repeat names.
        save(tmp_path / "distractors" / f"part{i % 2}" / f"{i // 2}.png", 100 + i)
    for i in range(60):
        save(tmp_path / "training" / f"{i}.png", 200 + i)
    return data


def test_evaluation_of_a_folder_and_of_its_descriptors(root, tmp_path):
    stored, out = [], tmp_path / "out"
    settings = {"codecs": "Flat;PCAW16,L2norm,Flat", "k": 12}
    rows, unreadable = evaluate_copydays_run(
        Thumbnails(),
        root,
        out,
        distractors=tmp_path / "distractors",
        training=tmp_path / "training",
        on_progress=lambda *each: stored.append(each),
        **settings,
    )
    assert unreadable == []
    assert {(name, total) for name, _, total in stored} == {
        ("copydays", 18),
        ("distractors", 10),
        ("training", 60),
    }
    blocks = {block.name: block.mean_average_precision for block in rows[0].blocks}
    assert list(blocks) == ["original", "strong", "crops/20"]
    assert blocks["original"] == blocks["crops/20"] == 1
    assert 5 / 6 <= blocks["strong"] < 1
    assert read_descriptors(out / "descriptors" / "copydays.npz").ids[6] == "strong/200001"
    kept = out / "descriptors"
    again = evaluate_copydays_files(
        kept / "copydays.npz",
        tmp_path / "again",
        distractors=kept / "distractors.npz",
        training=kept / "training.npz",
        **settings,
    )
    assert again == rows
    for name in ("copydays_metrics.csv", "copydays_blocks.csv", "metrics.json", "predictions.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_a_report_shows_attacks_and_images(root, tmp_path):
    save(root / "strong" / "205001.png", 109)
    (root / "original" / "201000.png").write_bytes(b"broken")
    out = tmp_path / "out"
    rows, _ = evaluate_copydays_run(
        Thumbnails(), root, out, distractors=tmp_path / "distractors", codecs="Flat;L2norm,Flat"
    )
    kept = read_record(out)
    assert (kept.queries, kept.references) == (17, 15)
    assert [row.figures["uAP"] for row in kept.rows] == [row.overall for row in rows]
    assert [row.figures[STRONG_MAP] for row in kept.rows] == [row.strong for row in rows]
    assert ("crops/20/202000", "original/202000") in kept.truth.pairs
    assert ("strong/201001", "original/201000") in kept.truth.pairs
    found = kept.predictions
    best = dict(
        zip(found.query_ids[::-1].tolist(), found.reference_ids[::-1].tolist(), strict=True)
    )
    assert best["crops/20/204000"] == "original/204000"
    assert best["strong/205001"] == "distractors/part1/4.png"
    assert found.scores.max() == pytest.approx(1) and (np.diff(found.scores) <= 0).all()
    (run,) = write_report([out], tmp_path / "report.html")
    stored = {kind: (each.copies, each.first) for kind, each in run.by_edit().items()}
    assert stored["original"] == stored["crops/20"] == (6, 5)
    assert stored["strong"][0] == 6 and stored["strong"][1] <= 4
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Strong mAP" in page and "SSCD's trapezoids" in page
    for name in ("strong/205001", "distractors/part1/4.png", "original/205000"):
        assert re.search(rf'<img src="data:image/jpeg;base64,[^"]+" alt="[A-Za-z ]+{name}"', page)


def test_a_report_of_descriptor_files(root, tmp_path):
    evaluate_copydays_run(Thumbnails(), root, tmp_path / "out")
    shutil.rmtree(root)
    evaluate_copydays_files(tmp_path / "out" / "descriptors" / "copydays.npz", tmp_path / "again")
    (run,) = write_report([tmp_path / "again"], tmp_path / "report.html")
    assert run.shown.figures[STRONG_MAP] is not None
    assert "evaluated from descriptor files" in (tmp_path / "report.html").read_text()
    (run,) = write_report([tmp_path / "out"], tmp_path / "report.html")
    assert "no images to show any more" in (tmp_path / "report.html").read_text()


def test_only_what_is_needed_is_embedded(root, tmp_path):
    training = tmp_path / "training"
    evaluate_copydays_run(Thumbnails(), root, tmp_path / "out", training=training, batch_size=6)
    written = sorted(path.name for path in (tmp_path / "out" / "descriptors").iterdir())
    assert written == ["copydays.npz"]


def test_unreadable_images_count_as_missed(root, tmp_path):
    (root / "original" / "201000.png").write_bytes(b"broken")
    (tmp_path / "distractors" / "part1" / "4.png").write_bytes(b"broken")
    out = tmp_path / "out"
    rows, unreadable = evaluate_copydays_run(
        Thumbnails(), root, out, distractors=tmp_path / "distractors"
    )
    assert [each.id for each in unreadable] == ["original/201000", "part1/4.png"]
    assert len((out / "unreadable.txt").read_text().splitlines()) == 2
    (written,) = json.loads((out / "metrics.json").read_text())
    assert written["strong_mAP"] < 5 / 6
    assert [block.images for block in rows[0].blocks] == [6, 6, 6]


def test_mistakes_are_reported_before_images_are_embedded(root, tmp_path):
    def run(**settings):
        model = Thumbnails()
        with pytest.raises(UserError) as caught:
            evaluate_copydays_run(model, root, tmp_path / "out", **settings)
        assert not model.shapes and not (tmp_path / "out").exists()
        return str(caught.value)

    assert "unknown codec 'IVF'" in run(codecs="IVF")
    assert "'PCAW4,L2norm,Flat' is fitted on a training set" in run(codecs="PCAW4,L2norm,Flat")
    assert "k is 7, but queries are compared with 6 images only" in run(k=7)
    assert "k is 17, but" in run(k=17, distractors=tmp_path / "distractors")
    assert "exact search" in run(backend="scann_ah")
    assert "none: there is no such folder" in run(distractors=tmp_path / "none")
    (root / "strong" / "200001.png").rename(root / "strong" / "300001.png")
    assert "300001.png: no original's name starts with 3000" in run()
