import csv
import dataclasses
import json

import numpy as np
import pytest

from rdcd_jax.benchmarks.copydays import (
    BLOCKS,
    IMAGES,
    evaluate_copydays,
    figures,
    write_copydays_results,
)
from rdcd_jax.benchmarks.settings import Settings
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.processor import instructions
from rdcd_jax.embedding.codecs import parse_codec
from rdcd_jax.embedding.descriptors import Descriptors

NUMPY = Settings(backend="numpy")


def test_the_references_figures(vectors):
    h = vectors("h_copydays")
    originals, strong = h["eval_original_files"].tolist(), h["eval_strong_files"].tolist()
    names = [
        f"{block}/{file}"
        for block in h["eval_block_names"].tolist()
        for file in (strong if block == "strong" else originals)
    ]
    blocks, overall = figures(names, h["eval_ids"], h["eval_distances"])
    expected = dict(zip(h["eval_metric_names"].tolist(), h["eval_metric_values"], strict=True))
    # Which of equal distances comes first depends on the CPU, here and in the reference: both
    # are between the figures of true neighbours last and first among equals.
    worst, best = (
        figures(names, h["eval_ids"], distances)[1]
        for distances in ties_broken(names, h["eval_ids"], h["eval_distances"])
    )
    macro = expected.pop("macro AP")
    for value in (overall, macro):
        assert best - 3e-5 < worst <= value <= best
    if {"avx512f", "avx512dq"} <= instructions():
        # The reference's figures were made on such a CPU.
        assert overall == pytest.approx(macro, abs=1e-12)
    got = {f"{block.name} mAP": block.mean_average_precision for block in blocks}
    assert got == pytest.approx(expected, abs=1e-12)
    assert [block.name for block in blocks] == h["eval_block_names"].tolist()
    assert [block.images for block in blocks] == h["eval_block_sizes"].tolist()
    assert (sum(block.images for block in blocks), len(blocks)) == (IMAGES, BLOCKS)


def ties_broken(names, ids, distances):
    """[N, k] float64 twice: true neighbours last among equals, and first."""
    originals = [name.split("/")[1] for name in names if name.startswith("original/")]
    # A strong attack is named by its original's first four digits.
    by_start = {name[:4]: position for position, name in enumerate(originals)}
    true = ids == np.asarray([[by_start[name.split("/")[-1][:4]]] for name in names])
    # Float32 numbers that differ do so by more.
    return distances + 1e-12 * true, distances - 1e-12 * true


def named(ids, rows):
    return Descriptors(np.asarray(ids), np.asarray(rows, np.float32), "m")


@pytest.fixture
def copydays():
    """Five originals, and copies that are further from them the stronger the attack is."""
    rng = np.random.default_rng(0)
    originals = rng.normal(size=(5, 8))
    ids, rows = [], []
    for block, noise in (("crops/80", 1), ("crops/9", 0.5), ("original", 0), ("strong", 2)):
        for i in range(5):
            ids.append(f"{block}/2{i:02d}0{int(block == 'strong')}0.jpg")
            rows.append(originals[i] + noise * rng.normal(size=8))
    return named(ids, rows), named([f"d{i}" for i in range(40)], 2 * rng.normal(size=(40, 8)))


def by_hand(images, database, codec, training):
    """Every block's mAP and the overall figure, each pair compared with each."""
    encode = parse_codec(codec).fit(training)
    queries, rows = encode(images.descriptors), encode(database)
    apart = ((queries[:, None].astype(float) - rows) ** 2).sum(-1)
    means, together = {}, []
    for query, image_id in zip(apart, images.ids.tolist(), strict=True):
        block, _, name = image_id.rpartition("/")
        own = int(name[1:3])
        rank = int(np.sum(query < query[own]))
        precision = 1.0 if rank == 0 else 0.5 / (rank + 1)
        means.setdefault(block, []).append(precision)
        together += [(distance, i == own) for i, distance in enumerate(query)]
    area, found = 0.0, 0
    for position, (_, right) in enumerate(sorted(together)):
        if right:
            before = found / position if position else 1.0
            found += 1
            area += (before + found / (position + 1)) / 2 / len(images)
    return {block: np.mean(values) for block, values in means.items()}, area


@pytest.mark.parametrize("codec", ["Flat", "L2norm,Flat", "PCAW4,L2norm,Flat", "L2norm,PCAW8,Flat"])
def test_figures_made_by_hand(copydays, codec):
    images, distractors = copydays
    training = named([f"t{i}" for i in range(60)], np.random.default_rng(1).normal(size=(60, 8)))
    (row,), _ = evaluate_copydays(images, distractors, training, Settings([codec]))
    database = np.concatenate([images.descriptors[10:15], distractors.descriptors])
    means, overall = by_hand(images, database, codec, training.descriptors)
    assert [block.name for block in row.blocks] == ["original", "strong", "crops/9", "crops/80"]
    got = {block.name: block.mean_average_precision for block in row.blocks}
    assert got == pytest.approx(means, abs=1e-9)
    assert row.overall == pytest.approx(overall, abs=1e-9)
    assert row.cells() == {"codec": codec, "strong_mAP": got["strong"], "overall_uAP": row.overall}
    assert got["original"] == 1 > got["strong"]


def test_k_distractors_and_unreadable_images(copydays):
    images, distractors = copydays
    (alone,), _ = evaluate_copydays(images, settings=NUMPY)
    (among,), _ = evaluate_copydays(images, distractors, settings=NUMPY)
    assert alone.overall > among.overall
    (few,), _ = evaluate_copydays(images, distractors, settings=Settings(k=1, backend="numpy"))
    assert few.overall < among.overall
    with pytest.raises(UserError, match="k is 46, but queries are compared with 45 images only"):
        evaluate_copydays(images, distractors, settings=Settings(k=46))
    # An original and a copy that could not be embedded count as missed, and so do the original's copies.
    lost = np.isin(images.ids, ["original/200000.jpg", "crops/9/201000.jpg"])
    rest = Descriptors(images.ids[~lost], images.descriptors[~lost], "m")
    unreadable = images.ids[lost].tolist()
    (row,), _ = evaluate_copydays(
        rest, settings=Settings(k=5, backend="numpy"), unreadable=unreadable
    )
    found = {block.name: block for block in row.blocks}
    assert [block.images for block in row.blocks] == [5, 5, 5, 5]
    assert found["original"].mean_average_precision == 0.8
    assert found["crops/9"].mean_average_precision <= 0.6
    assert row.overall < alone.overall


def test_files(copydays, tmp_path):
    images, distractors = copydays
    rows, predictions = evaluate_copydays(
        images, distractors, settings=Settings(["Flat", "L2norm,Flat"])
    )
    write_copydays_results(tmp_path / "out", rows, predictions)
    lines = (tmp_path / "out" / "copydays_metrics.csv").read_text().splitlines()
    assert lines[0] == "codec,strong_mAP,overall_uAP"
    assert lines[2] == f'"L2norm,Flat",{rows[1].blocks[1].mean_average_precision},{rows[1].overall}'
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written == [row.cells() for row in rows]
    with (tmp_path / "out" / "copydays_blocks.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["codec", "block", "pictures", "mAP"]
    assert [line["block"] for line in table[:4]] == ["original", "strong", "crops/9", "crops/80"]
    assert float(table[3]["mAP"]) == rows[0].blocks[3].mean_average_precision
    assert len(table) == 8


def test_what_is_not_copydays_is_refused(copydays):
    images, distractors = copydays
    ids = images.ids.tolist()
    other = dataclasses.replace(images, ids=np.asarray([f"Q{i}" for i in range(len(ids))]))
    with pytest.raises(UserError, match="'Q0' belongs to no part of Copydays; .*embed --ids=path"):
        evaluate_copydays(other)
    for block in ("original", "strong"):
        rest = [i for i, each in enumerate(ids) if not each.startswith(block)]
        some = Descriptors(images.ids[rest], images.descriptors[rest], "m")
        with pytest.raises(UserError, match=f"no images of the part '{block}'"):
            evaluate_copydays(some)
    ids[0] = "crops/80/9999.jpg"
    with pytest.raises(UserError, match="crops/80/9999.jpg: no original's name starts with 9999"):
        evaluate_copydays(dataclasses.replace(images, ids=np.asarray(ids)))
    ids[0] = "original/2000-twice.jpg"
    with pytest.raises(UserError, match="the originals .* start with the same 4"):
        evaluate_copydays(dataclasses.replace(images, ids=np.asarray(ids)))
    with pytest.raises(UserError, match="Copydays was embedded by 'm' and the distractors by 'n'"):
        evaluate_copydays(images, dataclasses.replace(distractors, model="n"))
    with pytest.raises(UserError, match="'PCAW4,L2norm,Flat' is fitted on a training set"):
        evaluate_copydays(images, distractors, settings=Settings(["PCAW4,L2norm,Flat"]))
    with pytest.raises(UserError, match="Copydays knows neither score normalisation nor"):
        evaluate_copydays(images, distractors, settings=Settings(global_candidates=True))
