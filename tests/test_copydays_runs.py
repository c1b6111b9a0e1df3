import json

import numpy as np
import pytest
from PIL import Image
from test_runs import Thumbnails

from rdcd_jax.errors import UserError
from rdcd_jax.evaluation.copydays_runs import evaluate_copydays_files, evaluate_copydays_run
from rdcd_jax.evaluation.descriptors import read_descriptors


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
    told, out = [], tmp_path / "out"
    settings = {"codecs": "Flat;PCAW16,L2norm,Flat", "k": 12}
    rows, unreadable = evaluate_copydays_run(
        Thumbnails(),
        root,
        out,
        distractors=tmp_path / "distractors",
        training=tmp_path / "training",
        on_progress=lambda *each: told.append(each),
        **settings,
    )
    assert unreadable == []
    assert {(name, total) for name, _, total in told} == {
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
    for name in ("copydays_metrics.csv", "copydays_blocks.csv", "metrics.json"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_only_what_is_needed_is_described(root, tmp_path):
    training = tmp_path / "training"
    evaluate_copydays_run(Thumbnails(), root, tmp_path / "out", training=training, batch_size=6)
    written = sorted(path.name for path in (tmp_path / "out" / "descriptors").iterdir())
    assert written == ["copydays.npz"]


def test_unreadable_pictures_count_as_missed(root, tmp_path):
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
    assert [block.pictures for block in rows[0].blocks] == [6, 6, 6]


def test_mistakes_are_told_before_pictures_are_described(root, tmp_path):
    def run(**settings):
        model = Thumbnails()
        with pytest.raises(UserError) as caught:
            evaluate_copydays_run(model, root, tmp_path / "out", **settings)
        assert not model.shapes and not (tmp_path / "out").exists()
        return str(caught.value)

    assert "unknown codec 'IVF'" in run(codecs="IVF")
    assert "'PCAW4,L2norm,Flat' is fitted on a training set" in run(codecs="PCAW4,L2norm,Flat")
    assert "k is 7, but queries are compared with 6 pictures only" in run(k=7)
    assert "k is 17, but" in run(k=17, distractors=tmp_path / "distractors")
    assert "exact search" in run(backend="scann_ah")
    assert "none: there is no such folder" in run(distractors=tmp_path / "none")
    (root / "strong" / "200001.png").rename(root / "strong" / "300001.png")
    assert "300001.png: no original's name starts with 3000" in run()
