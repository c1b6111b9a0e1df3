"""The demo's parts; `make demo` runs all of it."""

import json

import numpy as np
import pytest
from PIL import Image

from rdcd_jax import demo
from rdcd_jax.images.perceptual import perceptual_hash


def test_hashes_are_compared_by_their_bits():
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    batch[2] = 9
    rows = demo._hashes(batch)
    first, second = (perceptual_hash(Image.fromarray(pixels))[0] for pixels in batch[:2])
    differing = (first ^ second).bit_count()
    assert 0 < differing < 64
    np.testing.assert_allclose(rows @ rows.T, [
        [1, 1 - differing / 32, 0], [1 - differing / 32, 1, 0], [0, 0, 0]
    ], atol=1e-6)  # fmt: skip


@pytest.mark.slow
def test_without_a_teacher_copies_are_found_and_compared(tmp_path, monkeypatch, capsys):
    def none(spec):
        if spec in ("sscd", "onnxruntime"):
            raise demo.UserError("There is no teacher.")
        return load_model(spec)

    load_model = demo.load_model
    monkeypatch.setattr(demo, "load_model", none)
    demo.run_demo(tmp_path / "out")
    stored = capsys.readouterr().out
    assert "There is no teacher. Without it nothing is distilled." in stored
    lines = {each["model"]: each for each in json.loads((tmp_path / "out/demo.json").read_text())}
    shipped, hashed = (lines[name] for name in lines)
    assert shipped["uAP"] > 0.7 > 0.4 > hashed["uAP"] > 0.2 and hashed["bytes"] == 8
    page = (tmp_path / "out" / "found.html").read_text()
    assert page.count("<section") > 60 and "posterise, blur" in page
    assert (tmp_path / "out" / "matches.png").stat().st_size > 10_000
