"""Indexes by onnxruntime in 8-bit integers: who chooses it, what keeps to it, and how near it is to JAX."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
from onnx_support import make_onnx
from toy import make_export

from rdcd_jax.cli.main import main
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import file_sha256
from rdcd_jax.images.sources import find_images
from rdcd_jax.index import Index
from rdcd_jax.index.duplicates import find_duplicates
from rdcd_jax.index.manifest import MANIFEST, read_manifest
from rdcd_jax.weights import engines
from rdcd_jax.weights.engines import INT8, JAX, WEIGHTS_SHA256, with_engine
from rdcd_jax.weights.library import export_model, load_model
from rdcd_jax.weights.shipped import INT8_FILE, WEIGHTS, list_models

pytest.importorskip("onnxruntime")


def give_int8(folder, made_from=None):
    """A file beside a toy's weights that is far from them, so that one sees which was used."""
    make_onnx(folder / INT8_FILE)
    written = onnx.load(folder / INT8_FILE)
    entry = written.metadata_props.add()
    entry.key, entry.value = WEIGHTS_SHA256, made_from or file_sha256(folder / WEIGHTS)
    onnx.save(written, folder / INT8_FILE)


@pytest.fixture
def model(toys, tmp_path):
    folder = make_export(tmp_path / "model")
    give_int8(folder)
    return folder


@pytest.fixture
def without_onnxruntime(monkeypatch):
    find = engines.importlib.util.find_spec
    monkeypatch.setattr(
        engines.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "onnxruntime" else find(name, *rest),
    )


def test_auto_takes_it_where_it_is(model, images, tmp_path, capsys):
    assert main(["index", "build", str(images), f"--model={model}", f"--out={tmp_path / 'x'}"]) == 0
    assert main(["index", "info", str(tmp_path / "x")]) == 0
    assert "embedded by onnxruntime-int8" in capsys.readouterr().out
    quantised = with_engine(load_model(str(model)), INT8)
    found = Index(tmp_path / "x")
    np.testing.assert_allclose(found.contents().rows, quantised.embed(images), atol=1e-6)
    assert found.embedder.engine == INT8
    assert [match.score for match in found.search(images, k=1)] == pytest.approx([1] * 40)


def test_jax_where_it_is_asked_for_or_nothing_else_is_there(model, images, tmp_path):
    by_jax = Index.build(tmp_path / "x", images, model=str(model), engine=JAX)
    expected = load_model(str(model)).embed(images)
    np.testing.assert_allclose(by_jax.contents().rows, expected, atol=1e-6)
    # It stays so, whoever goes on with it.
    assert Index.build(tmp_path / "x", images, model=str(model)).embedder.engine == JAX
    (model / INT8_FILE).unlink()
    assert Index.build(tmp_path / "y", images, model=str(model)).embedder.engine == JAX


def test_without_onnxruntime(model, images, tmp_path, request):
    Index.build(tmp_path / "x", images, model=str(model))
    request.getfixturevalue("without_onnxruntime")
    assert Index.build(tmp_path / "y", images, model=str(model)).embedder.engine == JAX
    there = Index(tmp_path / "x")
    assert len(there.search(images, k=1, threshold=-2)) == 40
    with pytest.raises(
        UserError, match=r"engine onnxruntime-int8, which this machine cannot run; inst"
    ):
        there.add(images)


def test_a_model_that_was_loaded_stays_as_it_is(model, images, tmp_path):
    loaded = load_model(str(model))
    assert Index.build(tmp_path / "x", images, model=loaded).embedder.engine == JAX
    assert Index.build(tmp_path / "y", images, model=loaded, engine=INT8).embedder.engine == INT8


def test_duplicates_take_it_too(model, images, tmp_path, capsys):
    quantised = with_engine(load_model(str(model)), INT8)
    expected = [group.ids for group in find_duplicates(images, model=quantised, threshold=0.9)]
    for engine, same in (("auto", True), (JAX, False)):
        found = find_duplicates(images, model=str(model), threshold=0.9, engine=engine)
        assert ([group.ids for group in found] == expected) is same
    Index.build(tmp_path / "x", images, model=str(model))
    with pytest.raises(SystemExit):
        main(["duplicates", f"--index={tmp_path / 'x'}", "--engine=jax"])
    assert "an index has its own" in capsys.readouterr().err


def test_the_engine_of_an_index_stays(model, images, tmp_path):
    Index.build(tmp_path / "x", images, model=str(model))
    with pytest.raises(UserError, match="with engine onnxruntime-int8, and this would have jax"):
        Index.build(tmp_path / "x", images, model=str(model), engine=JAX)


def test_an_index_of_before_says_none(model, images, tmp_path):
    Index.build(tmp_path / "x", images, model=str(model), engine=JAX)
    path = tmp_path / "x" / MANIFEST
    stored = json.loads(path.read_text())
    del stored["engine"]
    path.write_text(json.dumps({**stored, "format": 6}))
    assert read_manifest(tmp_path / "x").engine == ""
    assert Index.build(tmp_path / "x", images, model=str(model)).embedder.engine == JAX


def test_a_file_of_other_weights_is_refused(model, images, tmp_path):
    give_int8(model, made_from="0" * 64)
    with pytest.raises(UserError, match=r"int8.onnx was made from other weights than"):
        Index.build(tmp_path / "x", images, model=str(model))
    assert not (tmp_path / "x").exists()


def test_an_export_that_replaces_another_loses_its_file(model):
    export_model(model, dataclasses.replace(load_model(str(model)), name="other"))
    assert load_model(str(model)).int8 is None


def test_what_is_impossible_is_refused(model, tmp_path):
    loaded = load_model(str(model))
    with pytest.raises(
        UserError, match="no engine 'torch' to embed with; use one of auto, jax, onn"
    ):
        with_engine(loaded, "torch")
    (model / INT8_FILE).unlink()
    with pytest.raises(
        UserError,
        match="does not come in 8-bit integers; use --engine=jax, or exp.*"
        rf"`rdcd-jax weights export --model={model} --format=onnx-int8 --out=FILE\.onnx`",
    ):
        with_engine(load_model(str(model)), INT8)
    make_onnx(tmp_path / "mean.onnx")
    file = load_model(f"onnxruntime:{tmp_path / 'mean.onnx'}")
    assert with_engine(file, "auto") is file
    with pytest.raises(UserError, match="is an ONNX file, which onnxruntime runs as it is"):
        with_engine(file, JAX)


@pytest.mark.parametrize("name", list_models())
def test_shipped_students_are_near(name):
    model = load_model(name)
    images = find_images("sample:queries")
    some = [images.decode(i) for i in range(0, len(images), 40)]
    quantised = with_engine(model, "auto")
    assert quantised.engine == INT8
    cosines = np.sum(model.embed(some) * quantised.embed(some), axis=1)
    assert cosines.min() > 0.97
    assert (quantised.fingerprint, quantised.dim) == (model.fingerprint, model.dim)
