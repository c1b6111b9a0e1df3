import importlib.util

import numpy as np
import pytest
from PIL import Image

from rdcd_jax.augment.host.operations import Drawn
from rdcd_jax.augment.policies import make_view
from rdcd_jax.augment.preview import embed, write_contact_sheet
from rdcd_jax.core.errors import UserError
from rdcd_jax.images.sources import find_images

FLIP = "hflip 1; resized_crop 1 scale=1,1 ratio=1,1"


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    ramp = np.zeros((60, 60, 3), np.uint8)
    ramp[:, :30] = (200, 30, 30)
    for i in range(5):
        Image.fromarray(ramp).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes(b"no picture")
    return find_images(folder)


def test_originals_and_views_lie_side_by_side_with_words_below(images, tmp_path):
    out = tmp_path / "new" / "sheet.png"
    write_contact_sheet(images, FLIP, 60, out, rows=3, views=2)
    sheet = np.asarray(Image.open(out))
    rows = np.flatnonzero((sheet[:, 15] == (200, 30, 30)).all(-1))
    assert len(rows) == 3 * 60
    top = rows[0]
    np.testing.assert_array_equal(sheet[top + 5, 10:70], [(200, 30, 30)] * 30 + [(0, 0, 0)] * 30)
    for column in (1, 2):
        left = 10 + column * 200
        view = sheet[top + 5, left : left + 60]
        np.testing.assert_array_equal(view, [(0, 0, 0)] * 30 + [(200, 30, 30)] * 30)
        below = sheet[top + 61 : top + 85, left : left + 190]
        assert (below == 0).all(-1).sum() > 20


def test_the_seed_decides(images, tmp_path):
    policy = "resized_crop 1 scale=0.1,1 ratio=0.7,1.4; jpeg 0.5 quality=0,100"
    sheets = []
    for name, seed in [("a.png", 1), ("b.png", 1), ("c.png", 2)]:
        write_contact_sheet(images, policy, 20, tmp_path / name, seed=seed)
        sheets.append((tmp_path / name).read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


def test_words_name_what_fired_and_its_parameters():
    changes = (("hue", -0.123), ("contrast", 1.5))
    assert embed(Drawn("jitter", {"changes": changes})) == "jitter: hue -0.12, contrast 1.50"
    assert embed(Drawn("grey", {})) == "grey"
    assert embed(Drawn("rotate", {"degrees": 37})) == "rotate: degrees 37"


@pytest.mark.skipif(importlib.util.find_spec("augly") is None, reason="augly is not installed")
def test_every_published_operation_has_words():
    view, rng = make_view("ADVANCED", 32), np.random.default_rng(0)
    lines = {embed(each) for _ in range(100) for each in view.draw((80, 60), rng)}
    names = {line.partition(":")[0] for line in lines}
    assert names == {step.operation for step in view.policy}
    assert all(len(line) < 150 for line in lines)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("sheet.gif", {}, r"sheet\.gif: .*\.png"),
        ("sheet.png", {"rows": 0}, "rows=0"),
        ("sheet.png", {"views": 0}, "views=0"),
        ("sheet.png", {"seed": -1}, "seed=-1"),
        ("sheet.png", {"rows": 1000}, "too large"),
    ],
)
def test_mistakes_are_refused(images, tmp_path, name, options, says):
    with pytest.raises(UserError, match=says):
        write_contact_sheet(images, FLIP, 32, tmp_path / name, **options)
    assert not (tmp_path / name).exists()


def test_no_readable_image_is_reported(tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="broken: none"):
        write_contact_sheet(find_images(folder), FLIP, 32, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
