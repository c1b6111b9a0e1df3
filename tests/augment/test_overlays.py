import importlib.util
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from rdcd_jax.augment import assets
from rdcd_jax.augment.host import edits
from rdcd_jax.augment.policies import make_view
from rdcd_jax.core.errors import UserError

needs_augly = pytest.mark.skipif(
    importlib.util.find_spec("augly") is None, reason="augly is not installed"
)


@pytest.fixture
def without_augly(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "augly" else find_spec(name)
    )
    assets.assets_folder.cache_clear()
    yield
    assets.assets_folder.cache_clear()


def test_without_augly_overlays_are_refused_with_the_way_out(without_augly):
    with pytest.raises(UserError, match=r"pip install --no-deps augly.*ADVANCED_NO_OVERLAY"):
        make_view("ADVANCED", 32)
    for policy in ("ADVANCED_NO_OVERLAY", "STRONG_BLUR", "SIMCLR"):
        make_view(policy, 32)


@needs_augly
def test_emoji_are_many_different_and_mostly_transparent_somewhere():
    files = assets.emoji_files()
    assert len(files) > 500 and list(files) == sorted(files)
    emoji = [assets.read_emoji(path) for path in files[::60]]
    assert {image.mode for image in emoji} == {"RGBA"}
    alpha = np.array([np.asarray(image)[..., 3].mean() for image in emoji])
    assert ((alpha > 40) & (alpha < 255)).mean() > 0.8


@needs_augly
def test_fonts_write_the_characters_they_list():
    files = assets.font_files()
    assert len(files) > 100 and list(files) == sorted(files)
    for path in files[::40]:
        codes = assets.characters(path)
        assert len(codes) > 10
        font = assets.read_font(path, 20)
        assert font.getbbox("".join(map(chr, codes[:20])))[2] > 0


@needs_augly
def test_augly_itself_is_never_imported():
    assets.emoji_files(), assets.font_files()
    assert "augly" not in sys.modules


def test_a_list_of_characters_cannot_run_code(tmp_path):
    path = tmp_path / "font.ttf"
    path.with_suffix(".pkl").write_bytes(pickle.dumps([65, print]))
    with pytest.raises(pickle.UnpicklingError, match="print"):
        assets.characters(path)
    path.with_suffix(".pkl").write_bytes(pickle.dumps([65, 66]))
    assert assets.characters(path).tolist() == [65, 66]


@needs_augly
def test_emoji_are_read_once_and_given_unchanged():
    path = assets.emoji_files()[0]
    emoji = assets.read_emoji(path)
    before = emoji.tobytes()
    grey = Image.new("RGB", (60, 40), (100, 100, 100))
    edits.overlay_emoji(grey, emoji, size=0.5, opacity=0.5, position=(0, 0))
    assert assets.read_emoji(path) is emoji and emoji.tobytes() == before
    assert assets.read_emoji.cache_info().maxsize is not None
