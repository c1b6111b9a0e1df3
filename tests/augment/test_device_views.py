"""The device's operations against Pillow's for the same parameters, and its policies against the host's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from rdcd_jax.augment import assets, policies
from rdcd_jax.augment.device import colour, geometry
from rdcd_jax.augment.device.jpeg import jpeg
from rdcd_jax.augment.device.overlay import draw_atlas, overlay_emoji, overlay_text
from rdcd_jax.augment.device.views import OPERATIONS, make_device_view
from rdcd_jax.augment.host import edits
from rdcd_jax.augment.policies import Step, make_view
from rdcd_jax.core.errors import UserError
from rdcd_jax.images.sources import find_images
from rdcd_jax.training.kept import keep_images
from rdcd_jax.weights.library import load_model

SIDE = 112


@pytest.fixture(scope="module")
def images():
    """Six of the bundled images, 144 x 112."""
    images = find_images("sample:train")
    return [images.decode(position).resize((144, SIDE)) for position in range(6)]


def levels(images) -> jax.Array:
    return jnp.asarray(np.stack([np.asarray(image) for image in images]), jnp.float32)


def assert_levels(ours, theirs, *, most, mean):
    """Largest and mean difference in levels; `most` may be passed by one value in ten thousand."""
    assert np.all(np.asarray(ours) == np.round(ours))
    difference = np.abs(np.asarray(ours) - np.asarray(levels(theirs)))
    assert np.quantile(difference, 0.9999) <= most
    assert difference.mean() <= mean


def turned_hue(image, turn):
    hue, *rest = image.convert("HSV").split()
    turned = hue.point([(level + int(turn * 255)) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, *rest)).convert("RGB")


PILLOW = {
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "saturation": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "hue": turned_hue,
}


@pytest.mark.parametrize(
    ("name", "most", "mean"),
    [("brightness", 0, 0), ("contrast", 1, 0.01), ("saturation", 1, 0.01), ("hue", 3, 0.01)],
)
def test_colour_changes(images, name, most, mean):
    amounts = np.float32(
        [-0.2, -0.1, 0.05, 0.1, 0.15, 0.2] if name == "hue" else [0, 0.2, 0.6, 1, 1.4, 1.8]
    )
    ours = jax.jit(getattr(colour, name))(levels(images), amounts)
    theirs = [PILLOW[name](p, float(a)) for p, a in zip(images, amounts, strict=True)]
    assert_levels(ours, theirs, most=most, mean=mean)


def test_grey(images):
    theirs = [edits.grey(image) for image in images]
    assert_levels(colour.grey(levels(images)), theirs, most=0, mean=0)


def gaussian(image, radius):
    return image.filter(ImageFilter.GaussianBlur(radius))


def test_blur(images):
    """Pillow rounds after each of its six passes."""
    radii = np.float32([0.1, 0.4, 1, 2.5, 4, 5])
    theirs = [gaussian(p, float(radius)) for p, radius in zip(images, radii, strict=True)]
    assert_levels(jax.jit(colour.blur)(levels(images), radii), theirs, most=3, mean=0.4)


@pytest.mark.parametrize("size", [(144, 112), (131, 101)])
def test_jpeg(images, size):
    """libjpeg's whole-number transforms fall to the other side of a quantiser's half in a block here and there.

    One step of the coarsest quantiser, 255, is up to 255 / 8 levels in each of the block's pixels.
    """
    qualities = np.float32([0, 10, 30, 50, 75, 95])
    cut = [image.crop((0, 0, *size)) for image in images]
    ours = jax.jit(jpeg)(levels(cut), qualities)
    theirs = [edits.jpeg(p, int(quality)) for p, quality in zip(cut, qualities, strict=True)]
    assert_levels(ours, theirs, most=32, mean=0.5)
    # That is far less than what the compression itself does.
    damage = np.abs(np.asarray(levels(theirs)) - np.asarray(levels(cut))).mean((1, 2, 3))
    left = np.abs(np.asarray(levels(theirs)) - np.asarray(ours)).mean((1, 2, 3))
    assert np.all(left[:4] < damage[:4] / 8)


def test_rotation(images):
    degrees = np.float32([3, 37, 90, 180, 270, 301])
    ours = jax.jit(geometry.rotate)(levels(images), jnp.full(6, 144 / SIDE), degrees)
    theirs = [edits.rotate(p, float(angle)) for p, angle in zip(images, degrees, strict=True)]
    assert_levels(ours, theirs, most=1, mean=0.5)


def test_rotation_of_a_squashed_image(images):
    """Against the same image turned first and squashed after, away from the frame's edge."""
    smooth = [gaussian(image, 3) for image in images]
    squashed = [image.resize((SIDE, SIDE)) for image in smooth]
    degrees = np.float32([10, 37, 90, 180, 270, 301])
    ours = jax.jit(geometry.rotate)(levels(squashed), jnp.full(6, 144 / SIDE), degrees)
    theirs = [
        edits.rotate(p, float(a)).resize((SIDE, SIDE)) for p, a in zip(smooth, degrees, strict=True)
    ]
    middle = slice(30, 82)
    difference = np.abs(np.asarray(ours) - np.asarray(levels(theirs)))[:, middle, middle]
    assert difference.mean() < 1


@pytest.mark.parametrize("size", [32, 96, 160])
def test_resized_crop(images, size):
    boxes = [(0, 0, 144, 112), (10, 20, 100, 110), (3, 7, 50, 60), (100, 90, 120, 112)]
    boxes += [(0, 50, 144, 60), (1, 1, 143, 111)]
    parts = np.float32([[a / 144, b / SIDE, (c - a) / 144, (d - b) / SIDE] for a, b, c, d in boxes])
    ours = jax.jit(geometry.resized_crop, static_argnums=2)(levels(images), parts, size)
    theirs = [edits.resized_crop(p, box, size) for p, box in zip(images, boxes, strict=True)]
    assert_levels(ours, theirs, most=1, mean=0.2)


def test_frame(images):
    boxes = [(0, 0, 144, 112), (10, 20, 100, 110), (3, 7, 50, 60), (100, 90, 120, 112)]
    boxes += [(0, 50, 144, 60), (1, 1, 143, 111)]
    parts = np.float32([[a / 144, b / SIDE, (c - a) / 144, (d - b) / SIDE] for a, b, c, d in boxes])
    colours = [(255, 255, 255), (0, 0, 0), (7, 80, 200), (1, 2, 3), (255, 0, 0), (0, 0, 0)]
    ours = jax.jit(geometry.frame)(levels(images), parts, np.float32(colours))
    theirs = [edits.frame(p, *each) for p, *each in zip(images, boxes, colours, strict=True)]
    assert_levels(ours, theirs, most=1, mean=0.2)


def test_crop_boxes():
    """Area, shape and position are as torchvision draws them, and as the host does."""
    rng = np.random.default_rng(0)
    settings = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}
    for width, height in ((300, 300), (600, 300)):
        aspect = width / height
        ours = geometry.crop_box(jax.random.key(1), jnp.full(4000, aspect), **settings)
        drawn = [
            edits.random_crop_box(width, height, rng=rng, **settings) for _ in range(len(ours))
        ]
        theirs = np.array(
            [[a / width, b / height, (c - a) / width, (d - b) / height] for a, b, c, d in drawn]
        )
        ours = np.asarray(ours)
        assert np.all(ours >= 0)
        assert np.all(ours[:, :2] + ours[:, 2:] <= 1 + 1e-6)
        for value in (
            lambda box: box[:, 0],
            lambda box: box[:, 1],
            lambda box: box[:, 2] * box[:, 3],
            lambda box: np.log(box[:, 2] / box[:, 3]),
        ):
            a, b = value(ours), value(theirs)
            # Four standard errors of the difference.
            assert abs(a.mean() - b.mean()) < 4 * np.hypot(a.std(), b.std()) / np.sqrt(len(a))
            assert abs(a.std() / b.std() - 1) < 0.1


def test_a_panorama_gets_the_central_crop():
    box = geometry.crop_box(jax.random.key(0), jnp.full(2, 100.0), (0.9, 1.0), (3 / 4, 4 / 3))
    np.testing.assert_allclose(box, [[0.5 - 1 / 150, 0, 1 / 75, 1]] * 2, atol=1e-6)


@pytest.fixture(scope="module")
def atlas():
    """All emoji and a thousand lines of text, where the fonts and emoji are installed."""
    try:
        return draw_atlas()
    except UserError:
        pytest.skip("AugLy's fonts and emoji are not installed")


def test_emoji(images, atlas):
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(atlas.emoji), size=6)
    size, opacity = rng.uniform(0.1, 0.5, 6), rng.uniform(0.7, 1, 6)
    position = rng.random((6, 2))
    ours = jax.jit(overlay_emoji)(
        levels(images),
        jnp.full(6, 144 / SIDE),
        jnp.asarray(atlas.emoji[chosen]),
        *(jnp.asarray(x, jnp.float32) for x in (size, opacity, position)),
    )
    theirs = [
        edits.overlay_emoji(
            image,
            assets.read_emoji(assets.emoji_files()[chosen[i]]),
            size=size[i],
            opacity=opacity[i],
            position=tuple(position[i]),
        )
        for i, image in enumerate(images)
    ]
    # Pillow lays it on whole pixels.
    difference = np.abs(np.asarray(ours) - np.asarray(levels(theirs)))
    assert difference.mean() < 1
    assert np.abs(np.asarray(levels(theirs)) - np.asarray(levels(images))).mean() > 3


def test_text_covers_what_it_should(images, atlas):
    """A line's beginning of known extent: the ink lies where its position, size and aspect say."""
    white = jnp.full((2, 112, 144, 3), 255.0)
    lines = jnp.full((2, *atlas.lines.shape[1:]), 255, jnp.uint8)
    extent = jnp.float32([[60, 30], [120, 20]])
    written = overlay_text(
        white,
        jnp.full(2, 144 / 112),
        lines,
        extent,
        jnp.float32([0.25, 0.3]),
        jnp.zeros((2, 3)),
        jnp.ones(2),
        jnp.float32([[0, 0], [1, 1]]),
    )
    # 112 true pixels are the short side; the font has 40 pixels in the atlas.
    for image, (across, down), size in zip(np.asarray(written), extent, (0.25, 0.3), strict=True):
        scale = size * 112 / 40
        np.testing.assert_allclose(
            (255 - image[..., 0]).sum() / 255, across * down * scale**2, rtol=0.03
        )
    assert written[0, 0, 0, 0] == written[1, -1, -1, 0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(policies.POLICIES))
def test_views_have_the_statistics_of_the_host_s(images, atlas, name):
    """Mean, contrast, colour and fine detail of many views of the same images, made either way."""
    count, size = 96, 48
    squashed = np.stack([np.asarray(image.resize((96, 96))) for image in images])
    device = jax.jit(make_device_view(name, size))
    aspect = jnp.full(len(images) * count, 144 / SIDE)
    repeated = jnp.asarray(np.repeat(squashed, count, axis=0))
    ours = np.asarray(
        device(repeated, aspect, atlas if policies.has_overlays(name) else None, jax.random.key(0))
    )
    assert ours.dtype == np.uint8
    host, rng = make_view(name, size), np.random.default_rng(0)
    theirs = np.stack([host(image, rng) for image in images for _ in range(count)])
    for statistic in (
        lambda x: x.mean((1, 2, 3)),
        lambda x: x.std((1, 2, 3)),
        lambda x: (x.max(-1) - x.min(-1)).mean((1, 2)),
        lambda x: np.abs(np.diff(x, axis=1)).mean((1, 2, 3)),
        lambda x: np.abs(np.diff(x, axis=2)).mean((1, 2, 3)),
    ):
        a, b = statistic(ours.astype(np.float32)), statistic(theirs.astype(np.float32))
        error = np.hypot(a.std(), b.std()) / np.sqrt(len(a))
        assert abs(a.mean() - b.mean()) < 4 * error


def test_a_model_sees_the_views_as_it_sees_the_host_s(atlas):
    """The shipped student's similarity of a view to its image, the same on average for either kind."""
    images = find_images("sample:train").subset(range(0, 800, 50))
    model, count = load_model("rdcd-effb0-128").at_size(64), 12
    kept = keep_images(images, 128, on_device=False)
    whole = model.embed_batch(keep_images(images, 64, on_device=False).pixels)
    host, rng = make_view("ADVANCED", 64), np.random.default_rng(0)
    device = jax.jit(make_device_view("ADVANCED", 64))
    pixels = [images.decode(position) for position in range(len(images))]
    ours, theirs = [], []
    for number in range(count):
        made = device(kept.pixels, jnp.asarray(kept.aspects), atlas, jax.random.key(number))
        ours.append(np.sum(model.embed_batch(np.asarray(made)) * whole, axis=1))
        views = np.stack([host(pixels, rng) for pixels in pixels])
        theirs.append(np.sum(model.embed_batch(views) * whole, axis=1))
    ours, theirs = np.array(ours), np.array(theirs)
    # The images are the same, so only their views make the means differ.
    spread = ours.var(axis=0, ddof=1) + theirs.var(axis=0, ddof=1)
    assert abs(ours.mean() - theirs.mean()) < 4 * np.sqrt(spread.mean() / ours.size)
    assert abs(ours.std() / theirs.std() - 1) < 0.25


def test_a_step_fires_as_often_as_it_says(images):
    policy = (Step("resized_crop", 1, {"scale": (1, 1), "ratio": (1, 1)}), Step("grey", 0.25))
    squashed = np.repeat(np.asarray(images[0].resize((16, 16)))[None], 4000, axis=0)
    view = jax.jit(make_device_view(policy, 16))
    seen = np.asarray(view(jnp.asarray(squashed), jnp.ones(4000), None, jax.random.key(3)))
    grey = (seen[..., 0] == seen[..., 1]).all((1, 2))
    assert abs(grey.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)


def test_a_probability_may_be_a_whole_number(images):
    policy = (Step("resized_crop", 1, {"scale": (1, 1), "ratio": (1, 1)}), Step("grey", 1))
    squashed = jnp.asarray(np.asarray(images[0].resize((16, 16)))[None])
    seen = np.asarray(make_device_view(policy, 16)(squashed, jnp.ones(1), None, jax.random.key(0)))
    assert (seen[..., 0] == seen[..., 1]).all()


def test_what_is_drawn_does_not_depend_on_the_devices(images):
    """Eight devices draw and make what one does."""
    squashed = jnp.asarray(np.stack([np.asarray(images[0].resize((32, 32)))] * 8))
    view = jax.jit(make_device_view("STRONG_BLUR", 16))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.P("data"))
    one = view(squashed, jnp.ones(8), None, jax.random.key(0))
    eight = view(*jax.device_put((squashed, jnp.ones(8)), split), None, jax.random.key(0))
    np.testing.assert_array_equal(one, eight)
    assert len(np.unique(np.asarray(one).reshape(8, -1), axis=0)) == 8


def test_every_operation_of_the_host_is_there():
    assert set(OPERATIONS) == set(policies.OPERATIONS)


def test_blur_before_the_crop_is_refused():
    crop = Step("resized_crop", 1, {"scale": (0.1, 1), "ratio": (1, 1)})
    with pytest.raises(UserError, match="blur after resized_crop.*config.data.views"):
        make_device_view((Step("blur", 0.5, {"radius": (1, 2)}), crop), 32)
