"""Results as objects: matches and groups, from paths, images and descriptors."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from toy import make_export, make_images

from rdcd_jax.cli import main
from rdcd_jax.core.errors import UserError
from rdcd_jax.index.duplicates import find_duplicates
from rdcd_jax.index.search import Index
from rdcd_jax.weights.library import load_model


@pytest.fixture
def model(tmp_path, toys):
    return load_model(str(make_export(tmp_path / "model", dim=8)))


def test_a_model_embeds_what_it_is_given(model, tmp_path):
    paths = sorted(make_images(tmp_path / "a", 5).iterdir())
    rows = model.embed([*map(str, paths), Image.open(paths[0])])
    assert rows.shape == (6, 8) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(rows[0], rows[5], atol=1e-6)
    np.testing.assert_allclose(model.embed(tmp_path / "a"), rows[:5], atol=1e-6)
    (tmp_path / "a" / "T00002.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"T00002\.jpg.*Leave what cannot be read out"):
        model.embed(tmp_path / "a")


def test_matches(model, tmp_path):
    folder = make_images(tmp_path / "a", 6)
    index = Index.build(tmp_path / "x", folder, model=model)
    paths = sorted(folder.iterdir())
    query = Image.open(paths[3])
    matches = Index.open(tmp_path / "x").search([query, np.asarray(Image.open(paths[1]))], k=1)
    assert [match.path for match in matches] == [str(paths[3]), str(paths[1])]
    assert matches.queries == ["#0", "#1"] and matches.of("#1") == [matches[1]]
    rows = model.embed(folder)
    again = index.search_descriptors(rows[[3, 1]], k=1)
    assert [match.reference for match in again] == ["T00003", "T00001"]
    with pytest.raises(UserError, match=r"give \[N, 8\]"):
        index.search_descriptors(rows[:, :4])
    for wrong, match in (
        (2 * rows[0], r"Descriptor 1 has length 2; give descriptors of length 1"),
        (0 * rows[0], "The descriptors given: 1 of 2 descriptors are zero"),
    ):
        with pytest.raises(UserError, match=match):
            index.search_descriptors(np.stack([rows[0], wrong]))
    matches.save(tmp_path / "m.csv")
    matches.save(tmp_path / "m.json")
    with (tmp_path / "m.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == [str(paths[3]), str(paths[1])]
    assert json.loads((tmp_path / "m.json").read_text())[1]["reference"] == "T00001"
    matches.save(tmp_path / "m.html", notes={"#0": "nothing was done to it"})
    page = (tmp_path / "m.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4 and "nothing was done to it" in page
    assert "2 of 2 queries have matches" in page and "T00003" in page and "48 x 48" in page
    again.save(tmp_path / "rows.html")
    assert (tmp_path / "rows.html").read_text().count("no picture") == 2
    with pytest.raises(UserError, match=r"\.csv, \.json or \.html"):
        matches.save(tmp_path / "m.txt")


def test_a_model_that_lies_nowhere_makes_no_index(model, tmp_path):
    nowhere = dataclasses.replace(model, spec="")
    with pytest.raises(UserError, match="lies nowhere"):
        Index.build(tmp_path / "x", make_images(tmp_path / "a", 2), model=nowhere)


def test_groups(model, tmp_path):
    folder = make_images(tmp_path / "a", 4)
    Image.open(folder / "T00001.jpg").resize((30, 20)).save(folder / "copy.png")
    groups = find_duplicates(folder, model=model, threshold=0.999)
    (group,) = groups
    assert group.ids == ("T00001", "copy") and group.sizes == [(48, 48), (30, 20)]
    assert group.paths == tuple(str(folder / name) for name in ("T00001.jpg", "copy.png"))
    assert group.scores.shape == (2, 2) and group.scores[0, 1] == pytest.approx(
        group.score, abs=1e-5
    )
    assert groups.images == 5 and groups.unreadable == []
    for suffix in ("csv", "json", "html"):
        groups.save(tmp_path / f"g.{suffix}")
    with (tmp_path / "g.csv").open() as file:
        assert [row["width"] for row in csv.DictReader(file)] == ["48", "30"]
    (stored,) = json.loads((tmp_path / "g.json").read_text())
    assert stored["sizes"] == [[48, 48], [30, 20]] and stored["keep"] == [True, False]
    assert stored["scores"] == pytest.approx([1, stored["score"]], abs=1e-5)
    assert stored["least"] == pytest.approx(stored["mean"], abs=1e-6)
    page = (tmp_path / "g.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 and "http" not in page.replace(
        "http-equiv", ""
    )
    with pytest.raises(UserError, match=r"\.csv, \.json or \.html"):
        groups.save(tmp_path / "g.txt")


def test_a_large_group_hides_no_other_and_paths_stay_as_they_are(model, tmp_path, monkeypatch):
    monkeypatch.setattr("rdcd_jax.report.gallery._MOST_OF_ONE", 3)
    folder = make_images(tmp_path / "a", 2)
    for i in range(4):
        (folder / f"copy{i}.jpg").write_bytes((folder / "T00000.jpg").read_bytes())
    # As a Mac calls its screenshots.
    (folder / "at 5\u202fPM.jpg").write_bytes((folder / "T00001.jpg").read_bytes())
    find_duplicates(folder, model=model, threshold=0.999).save(tmp_path / "g.html")
    page = (tmp_path / "g.html").read_text()
    assert page.count("<figure") == 5 and "2 more are not shown" in page
    assert f'data-path="{folder}/at 5\u202fPM.jpg"' in page


def test_many_images_are_embedded_through_parts(model, tmp_path, monkeypatch):
    """Who is killed goes on: what was embedded lies in the cache folder, and is gone when all is done."""
    folder = make_images(tmp_path / "a", 12)
    monkeypatch.setattr("rdcd_jax.index.compared.ROWS", 8)
    monkeypatch.setattr("rdcd_jax.embedding.parts.ROWS", 4)
    monkeypatch.setenv("RDCD_JAX_CACHE", str(tmp_path / "cache"))
    embed, given = type(model).embed_batch, []

    def ending(self, images):
        given.append(len(images))
        if len(given) == 3:
            raise KeyboardInterrupt
        return embed(self, images)

    monkeypatch.setattr(type(model), "embed_batch", ending)
    with pytest.raises(KeyboardInterrupt):
        find_duplicates(folder, model=model, threshold=0.999)
    before = len(given)
    groups = find_duplicates(folder, model=model, threshold=0.999)
    assert len(groups) == 0 and len(given) - before == 1
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_the_verb_writes_a_page(model, tmp_path, capsys):
    folder = make_images(tmp_path / "a", 3)
    Image.open(folder / "T00001.jpg").save(folder / "same.png")
    words = ["duplicates", str(folder), f"--model={model.spec}", "--threshold=0.999"]
    assert main([*words, f"--out={tmp_path / 'g.html'}"]) == 0
    assert "1 groups of copies, 2 of 4 images in all" in capsys.readouterr().out
    assert "Group 1" in (tmp_path / "g.html").read_text()
    assert main([*words, f"--out={tmp_path / 'g.txt'}"]) == 1
