"""Work on an Apache Beam pipeline: packing and embedding."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from toy import make_images

from rdcd_jax.core.beam import run_each
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.descriptors import read_descriptors
from rdcd_jax.images.pack import pack_images

HAS_BEAM = importlib.util.find_spec("apache_beam") is not None
needs_beam = pytest.mark.skipif(not HAS_BEAM, reason="needs Apache Beam")
OPTIONS = "--runner=DirectRunner --direct_num_workers=1"


@pytest.mark.skipif(HAS_BEAM, reason="Apache Beam is installed")
def test_beam_must_be_installed_to_be_asked_for():
    with pytest.raises(UserError, match="Apache Beam is not installed: pip install apache-beam"):
        run_each(print, [1], "")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = make_images(tmp_path_factory.mktemp("images"), 9)
    (folder / "T00004.jpg").write_bytes(b"no image")
    return folder


@needs_beam
@pytest.mark.filterwarnings("ignore")
def test_packing_on_beam_gives_the_shards_of_one_machine(pictures, tmp_path):
    found = [
        pack_images(pictures, tmp_path / name, shards=3, beam_options=options)
        for name, options in (("alone", None), ("beam", OPTIONS))
    ]
    assert found[0] == found[1]
    for path in (tmp_path / "alone").iterdir():
        assert path.read_bytes() == (tmp_path / "beam" / path.name).read_bytes()


@needs_beam
def test_embedding_on_beam_gives_the_descriptors_of_one_machine(pictures, tmp_path):
    made = []
    for name, more in (("alone", []), ("beam", [f"--beam-options={OPTIONS}"])):
        out = tmp_path / f"{name}.npz"
        words = ["embed", pictures, "--model=rdcd-effb0-64", f"--out={out}", "--image-size=64"]
        ended = subprocess.run(
            [sys.executable, "-m", "rdcd_jax", *map(str, words), *more],
            capture_output=True,
            text=True,
            env=os.environ,
        )
        assert ended.returncode == 0, ended.stderr
        assert "8 descriptors" in ended.stdout
        made.append(read_descriptors(out))
    assert made[0].ids.tolist() == made[1].ids.tolist()
    np.testing.assert_array_equal(made[0].descriptors, made[1].descriptors)


@needs_beam
@pytest.mark.filterwarnings("ignore")
def test_what_fails_on_a_machine_is_a_sentence():
    with pytest.raises(UserError, match="The Beam pipeline failed .*cannot"):
        run_each(_fail, [1], OPTIONS)


def _fail(number):
    raise ValueError(f"cannot make {number}")
