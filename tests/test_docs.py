"""The documentation builds without a warning."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

from rdcd_jax.benchmarks import ground_truth
from rdcd_jax.index import Index
from rdcd_jax.index.export import export_index
from rdcd_jax.weights.export import export_weights
from rdcd_jax.weights.kinds import KINDS
from rdcd_jax.weights.library import load_model

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_builds(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
    assert "rdcd_jax" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    # Nothing is asked from another host but links that a reader follows.
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert 'src="http' not in text and 'rel="stylesheet" href="http' not in text, page.name


def test_every_known_name_is_told():
    page = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    names = (
        *ground_truth.NDEC_QUERY_FOLDERS,
        *ground_truth.REFERENCE_FOLDERS,
        *ground_truth.TRAINING_FOLDERS,
        *ground_truth.NDEC_GROUND_TRUTH_FILES,
    )
    assert [name for name in names if f"`{name}" not in page] == []


def test_every_kind_of_weights_is_told():
    page = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    assert [name for name in (*KINDS, "onnxruntime") if f"`{name}`" not in page] == []


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs onnxruntime")
def test_an_exported_file_runs_elsewhere(tmp_path):
    page = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    code = next(part for part in page.split("```") if "InferenceSession" in part)
    export_weights(load_model("rdcd-effb0-128"), "onnx", tmp_path / "student.onnx")
    command = [sys.executable, "-c", code.removeprefix("python\n")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "(2, 128)", done.stderr


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("pymilvus", "milvus_lite")),
    reason="needs pymilvus and milvus-lite",
)
def test_an_index_goes_into_a_vector_database(tmp_path):
    page = (ROOT / "docs" / "find-copies.md").read_text(encoding="utf-8")
    code = next(part for part in page.split("```") if "MilvusClient" in part)
    index = Index.build(tmp_path / "x", ROOT / "rdcd_jax/sample/queries", model="rdcd-effb0-128")
    export_index(index, tmp_path / "my.parquet", "parquet")
    command = [sys.executable, "-c", code.removeprefix("python\n")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == index.contents().ids[0], done.stderr
