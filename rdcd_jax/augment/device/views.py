"""Policies as programs: draws each operation's parameters for a whole batch, and applies it where it fires."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from rdcd_jax.augment.device import colour, geometry
from rdcd_jax.augment.device.jpeg import jpeg
from rdcd_jax.augment.device.overlay import Atlas, overlay_emoji, overlay_text, text_extent
from rdcd_jax.augment.policies import Policy, find_policy
from rdcd_jax.core.errors import UserError

Range = Sequence[float]
# Their unit is the view's pixel, so they come after the crop.
_NEED_THE_VIEW = ("blur", "jpeg")


def make_device_view(
    policy: str | Policy, image_size: int
) -> Callable[[jax.Array, jax.Array, Atlas | None, jax.Array], jax.Array]:
    """Makes the program of one view of each image.

    Args:
        policy: a name from `policies.POLICIES`, or the steps themselves.
        image_size: side S of the views.

    Returns:
        A function of pixels [B, T, T, 3] uint8 that were squashed to a square, their true width / height [B], the
        atlas (None where `policies.has_overlays` is false) and a key, that gives views [B, S, S, 3] uint8. What is
        drawn for an image depends on the key and the image's position in the batch.

    Raises:
        UserError: as `find_policy`; or the policy blurs or compresses before it crops.

    Differs from the host's `make_view`: images are reduced to T x T first, text comes from an atlas of prerendered
    lines, and resampled levels are rounded once.
    """
    policy = find_policy(policy)
    names = [step.operation for step in policy]
    for name in names[: names.index("resized_crop")]:
        if name in _NEED_THE_VIEW:
            raise UserError(
                f"On the device a policy has {name} after resized_crop; move it, or set config.data.views to 'host'."
            )

    def view(pixels: jax.Array, aspect: jax.Array, atlas: Atlas | None, key: jax.Array):
        images = pixels.astype(jnp.float32)
        for number, step in enumerate(policy):
            fire_key, draw_key = jax.random.split(jax.random.fold_in(key, number))
            state = _State(draw_key, images, aspect, image_size, atlas)
            changed = OPERATIONS[step.operation](state, **step.ranges)
            if step.operation == "resized_crop":
                images, aspect = changed, jnp.ones_like(aspect)
                continue
            fires = jax.random.bernoulli(fire_key, float(step.probability), (len(images),))
            images = jnp.where(fires[:, None, None, None], changed, images)
        return images.astype(jnp.uint8)

    return view


class _State:
    """What an operation works on, and draws from."""

    def __init__(self, key, images, aspect, image_size, atlas):
        self.key, self.images, self.aspect = key, images, aspect
        self.image_size, self.atlas = image_size, atlas

    def keys(self, count: int) -> jax.Array:
        return jax.random.split(self.key, count)

    def uniform(self, key: jax.Array, bounds: Range = (0, 1), shape: tuple[int, ...] = ()):
        size = (len(self.images), *shape)
        return jax.random.uniform(key, size, minval=bounds[0], maxval=bounds[1])

    def whole(self, key: jax.Array, low: int, high: int, shape: tuple[int, ...] = ()):
        """Whole numbers from low to high, both included."""
        return jax.random.randint(key, (len(self.images), *shape), low, high + 1)


def _hflip(state: _State) -> jax.Array:
    return geometry.hflip(state.images)


def _rotate_by_one_of(state: _State, *, degrees: Range) -> jax.Array:
    chosen = jnp.asarray(degrees, jnp.float32)[state.whole(state.key, 0, len(degrees) - 1)]
    return geometry.rotate(state.images, state.aspect, chosen)


def _rotate(state: _State, *, degrees: Range) -> jax.Array:
    drawn = state.whole(state.key, int(degrees[0]), int(degrees[1])).astype(jnp.float32)
    return geometry.rotate(state.images, state.aspect, drawn)


def _overlay_text(state: _State, *, size: Range, opacity: Range) -> jax.Array:
    keys = state.keys(6)
    atlas = state.atlas
    line = state.whole(keys[0], 0, len(atlas.lines) - 1)
    rights, bottoms = atlas.rights[line], atlas.bottoms[line]
    font = state.uniform(keys[1], size)
    width, height = text_extent(
        state.aspect[:, None], jnp.stack([rights, bottoms], -1), font[:, None]
    )
    fits = (width <= 1) & (height <= 1) & (rights <= atlas.lines.shape[2])
    count = jnp.sum(jnp.cumprod(fits, axis=1), axis=1)
    drawn = state.uniform(keys[2]) * count.astype(jnp.float32)
    taken = jnp.floor(drawn).astype(jnp.int32)[:, None]
    extent = jnp.concatenate(
        [jnp.take_along_axis(x, taken, axis=1) for x in (rights, bottoms)], axis=1
    )
    return overlay_text(
        state.images,
        state.aspect,
        atlas.lines[line],
        jnp.where(count[:, None] > 0, extent, 0),
        font,
        state.whole(keys[3], 0, 255, (3,)).astype(jnp.float32),
        state.uniform(keys[4], opacity),
        state.uniform(keys[5], shape=(2,)),
    )


def _overlay_emoji(state: _State, *, size: Range, opacity: Range) -> jax.Array:
    keys = state.keys(4)
    chosen = state.whole(keys[0], 0, len(state.atlas.emoji) - 1)
    return overlay_emoji(
        state.images,
        state.aspect,
        state.atlas.emoji[chosen],
        state.uniform(keys[1], size),
        state.uniform(keys[2], opacity),
        state.uniform(keys[3], shape=(2,)),
    )


def _resized_crop(state: _State, *, scale: Range, ratio: Range) -> jax.Array:
    box = geometry.crop_box(state.key, state.aspect, scale, ratio)
    return geometry.resized_crop(state.images, box, state.image_size)


def _frame(state: _State, *, scale: Range, ratio: Range) -> jax.Array:
    keys = state.keys(3)
    box = geometry.crop_box(keys[0], state.aspect, scale, ratio)
    drawn = state.whole(keys[1], 0, 255, (3,)).astype(jnp.float32)
    white = jnp.full_like(drawn, 255)
    levels = jnp.stack([white, jnp.zeros_like(drawn), drawn])
    chosen = state.whole(keys[2], 0, len(levels) - 1)
    return geometry.frame(state.images, box, levels[chosen, jnp.arange(len(drawn))])


def _jitter(state: _State, **bounds: Range) -> jax.Array:
    order_key, *keys = state.keys(1 + len(bounds))
    changes = [getattr(colour, name) for name in bounds]
    amounts = [state.uniform(key, pair) for key, pair in zip(keys, bounds.values(), strict=True)]
    # Each image's changes come in an order of its own.
    order = jnp.argsort(state.uniform(order_key, shape=(len(changes),)), axis=1)
    images = state.images
    for turn in order.T:
        turn = turn[:, None, None, None]
        done = [change(images, amount) for change, amount in zip(changes, amounts, strict=True)]
        images = jnp.select([turn == i for i in range(len(done))], done)
    return images


def _grey(state: _State) -> jax.Array:
    return colour.grey(state.images)


def _blur(state: _State, *, radius: Range) -> jax.Array:
    return colour.blur(state.images, state.uniform(state.key, radius))


def _jpeg(state: _State, *, quality: Range) -> jax.Array:
    return jpeg(state.images, state.whole(state.key, *map(int, quality)).astype(jnp.float32))


OPERATIONS: Mapping[str, Callable[..., jax.Array]] = {
    "hflip": _hflip,
    "rotate_by_one_of": _rotate_by_one_of,
    "rotate": _rotate,
    "overlay_text": _overlay_text,
    "overlay_emoji": _overlay_emoji,
    "resized_crop": _resized_crop,
    "frame": _frame,
    "jitter": _jitter,
    "grey": _grey,
    "blur": _blur,
    "jpeg": _jpeg,
}
