"""Which operations make a view, how often each fires and from which ranges it draws."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from rdcd_jax.data import augment, overlays
from rdcd_jax.errors import UserError

Range = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Step:
    """One line of a policy.

    Attributes:
        operation: a name from the table at the end of this file.
        probability: that it fires, independently of the others.
        ranges: (low, high) of each of its parameters, both included; `rotate_by_one_of` takes the
            values themselves.
    """

    operation: str
    probability: float
    ranges: Mapping[str, Range] = dataclasses.field(default_factory=dict)


Policy = tuple[Step, ...]

_CROP = Step("resized_crop", 1, {"scale": (0.08, 1), "ratio": (3 / 4, 4 / 3)})
_JITTER = Step(
    "jitter",
    0.8,
    {
        "brightness": (0.2, 1.8),
        "contrast": (0.2, 1.8),
        "saturation": (0.2, 1.8),
        "hue": (-0.2, 0.2),
    },
)
_GREY = Step("grey", 0.2)
_STRONG_BLUR = Step("blur", 0.5, {"radius": (1, 5)})
_OVERLAYS = (
    Step("overlay_text", 0.1, {"size": (0.1, 0.3), "opacity": (0.1, 1)}),
    Step("overlay_emoji", 0.2, {"size": (0.1, 0.5), "opacity": (0.7, 1)}),
)

# Source: SSCD (arXiv:2202.10261) and its published settings; RDCD trains with ADVANCED.
SIMCLR: Policy = (
    _CROP,
    Step("hflip", 0.5),
    _JITTER,
    _GREY,
    Step("blur", 0.5, {"radius": (0.1, 2)}),
)
STRONG_BLUR: Policy = (_CROP, Step("hflip", 0.5), _JITTER, _GREY, _STRONG_BLUR)
ADVANCED: Policy = (
    Step("hflip", 0.5),
    Step("rotate_by_one_of", 0.05, {"degrees": (90, 180, 270)}),
    *_OVERLAYS,
    Step("rotate", 0.05, {"degrees": (0, 359)}),
    _CROP,
    _JITTER,
    _GREY,
    _STRONG_BLUR,
    Step("jpeg", 0.2, {"quality": (0, 100)}),
)
# For where no fonts and emoji are at hand; not a published policy.
ADVANCED_NO_OVERLAY: Policy = tuple(step for step in ADVANCED if step not in _OVERLAYS)
# ADVANCED for views of 64 to 128 pixels and short runs: blur in proportion to the view, milder crops and colours; not a
# published policy.
MILD: Policy = (
    Step("hflip", 0.5),
    Step("rotate_by_one_of", 0.05, {"degrees": (90, 180, 270)}),
    *_OVERLAYS,
    Step("rotate", 0.05, {"degrees": (0, 359)}),
    Step("resized_crop", 1, {"scale": (0.3, 1), "ratio": (3 / 4, 4 / 3)}),
    Step(
        "jitter",
        0.8,
        {
            "brightness": (0.5, 1.5),
            "contrast": (0.5, 1.5),
            "saturation": (0.5, 1.5),
            "hue": (-0.1, 0.1),
        },
    ),
    _GREY,
    Step("blur", 0.3, {"radius": (0.3, 1.5)}),
    Step("jpeg", 0.2, {"quality": (5, 80)}),
)
MILD_NO_OVERLAY: Policy = tuple(step for step in MILD if step not in _OVERLAYS)

POLICIES: Mapping[str, Policy] = {
    "SIMCLR": SIMCLR,
    "STRONG_BLUR": STRONG_BLUR,
    "ADVANCED": ADVANCED,
    "ADVANCED_NO_OVERLAY": ADVANCED_NO_OVERLAY,
    "MILD": MILD,
    "MILD_NO_OVERLAY": MILD_NO_OVERLAY,
}


def find_policy(policy: str | Policy) -> Policy:
    """The policy of that name, or the one given, checked.

    Raises:
        UserError: an unknown policy, operation or parameter, a parameter without its range, a
            probability outside 0..1, or not exactly one certain `resized_crop`.
    """
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise UserError(f"Unknown policy {policy!r}: choose one of {', '.join(POLICIES)}.")
        return POLICIES[policy]
    for step in policy:
        _check(step)
    if [step.probability for step in policy if step.operation == "resized_crop"] != [1]:
        raise UserError("A policy needs exactly one resized_crop, with probability 1.")
    return tuple(policy)


@dataclasses.dataclass(frozen=True)
class View:
    """Makes one view of a picture; what `make_view` returns, a class so that it can be pickled."""

    policy: Policy
    image_size: int

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Draws and applies the policy.

        Args:
            image: RGB, of any size from one pixel up.
            rng: where every random number comes from; the same state gives the same view.

        Returns:
            [image_size, image_size, 3] uint8.
        """
        for step in self.policy:
            if rng.random() < step.probability:
                operation = OPERATIONS[step.operation]
                image = operation(image, rng, self.image_size, **step.ranges)
        return np.array(image)

    @property
    def useful_side(self) -> int:
        """Short side in pixels from which on no crop of the policy would have to be enlarged."""
        (crop,) = (step for step in self.policy if step.operation == "resized_crop")
        narrowest = min(crop.ranges["ratio"][0], 1 / crop.ranges["ratio"][1])
        return math.ceil(self.image_size / math.sqrt(crop.ranges["scale"][0] * narrowest))


def make_view(policy: str | Policy, image_size: int) -> View:
    """A function (RGB picture, generator) -> [image_size, image_size, 3] uint8.

    Args:
        policy: a name from `POLICIES`, or the steps themselves.
        image_size: side of the square views in pixels, at least 1.

    Raises:
        UserError: see `find_policy`; or the policy overlays and the pictures for it are missing.
    """
    policy = find_policy(policy)
    if image_size < 1:
        raise UserError(f"image_size={image_size}: a view needs a side of at least one pixel.")
    if any(step.operation.startswith("overlay_") for step in policy):
        overlays.assets_folder()  # told here, before any worker starts
    return View(policy, image_size)


def _check(step: Step) -> None:
    if step.operation not in OPERATIONS:
        raise UserError(
            f"Unknown operation {step.operation!r}: choose one of {', '.join(OPERATIONS)}."
        )
    if not 0 <= step.probability <= 1:
        raise UserError(f"{step.operation}: probability {step.probability} is not within 0 to 1.")
    known = inspect.signature(OPERATIONS[step.operation]).parameters.values()
    wanted = {parameter.name for parameter in known if parameter.kind == parameter.KEYWORD_ONLY}
    for name in sorted(wanted ^ set(step.ranges)):
        what = "needs a range for" if name in wanted else "has no parameter"
        raise UserError(
            f"{step.operation} {what} {name!r}; its parameters are {sorted(wanted) or 'none'}."
        )
    for name, values in step.ranges.items():
        one_of = step.operation == "rotate_by_one_of"
        if not values or (not one_of and (len(values) != 2 or values[0] > values[1])):
            raise UserError(f"{step.operation}: {name}={values!r} should be (low, high).")


# The operations: draw the parameters, then apply. The numbers are drawn in a fixed order, which is
# part of what a seed means.


def _hflip(image: Image.Image, rng: np.random.Generator, image_size: int) -> Image.Image:
    return augment.hflip(image)


def _rotate_by_one_of(
    image: Image.Image, rng: np.random.Generator, image_size: int, *, degrees: Range
) -> Image.Image:
    return augment.rotate(image, degrees[rng.integers(len(degrees))])


def _rotate(
    image: Image.Image, rng: np.random.Generator, image_size: int, *, degrees: Range
) -> Image.Image:
    return augment.rotate(image, int(rng.integers(degrees[0], degrees[1], endpoint=True)))


def _overlay_text(
    image: Image.Image, rng: np.random.Generator, image_size: int, *, size: Range, opacity: Range
) -> Image.Image:
    files = overlays.font_files()
    path = files[rng.integers(len(files))]
    pixels = int(min(image.size) * rng.uniform(*size))
    if not pixels:
        return image
    font = overlays.read_font(path, pixels)
    # A hundred characters fill any picture but a very long one; then this much is the line.
    text = "".join(map(chr, rng.choice(overlays.characters(path), size=100)))
    try:
        fits = augment.longest_fit(text, font, *image.size)
        if not fits:
            return image
        return augment.overlay_text(
            image,
            text[: rng.integers(fits) + 1],
            font,
            colour=tuple(int(level) for level in rng.integers(256, size=3)),
            opacity=rng.uniform(*opacity),
            position=(rng.random(), rng.random()),
        )
    except OSError:
        # Some of the fonts list characters whose glyph is broken; then there is no text.
        return image


def _overlay_emoji(
    image: Image.Image, rng: np.random.Generator, image_size: int, *, size: Range, opacity: Range
) -> Image.Image:
    files = overlays.emoji_files()
    return augment.overlay_emoji(
        image,
        overlays.read_emoji(files[rng.integers(len(files))]),
        size=rng.uniform(*size),
        opacity=rng.uniform(*opacity),
        position=(rng.random(), rng.random()),
    )


def _resized_crop(
    image: Image.Image, rng: np.random.Generator, image_size: int, *, scale: Range, ratio: Range
) -> Image.Image:
    box = augment.random_crop_box(*image.size, scale=scale, ratio=ratio, rng=rng)
    return augment.resized_crop(image, box, image_size)


def _jitter(
    image: Image.Image,
    rng: np.random.Generator,
    image_size: int,
    *,
    brightness: Range,
    contrast: Range,
    saturation: Range,
    hue: Range,
) -> Image.Image:
    changes: list[tuple[Callable[[Image.Image, float], Image.Image], float]] = [
        (augment.brightness, rng.uniform(*brightness)),
        (augment.contrast, rng.uniform(*contrast)),
        (augment.saturation, rng.uniform(*saturation)),
        (augment.hue, rng.uniform(*hue)),
    ]
    for i in rng.permutation(len(changes)):
        change, amount = changes[i]
        image = change(image, amount)
    return image


def _grey(image: Image.Image, rng: np.random.Generator, image_size: int) -> Image.Image:
    return augment.grey(image)


def _blur(
    image: Image.Image, rng: np.random.Generator, image_size: int, *, radius: Range
) -> Image.Image:
    return augment.blur(image, rng.uniform(*radius))


def _jpeg(
    image: Image.Image, rng: np.random.Generator, image_size: int, *, quality: Range
) -> Image.Image:
    return augment.jpeg(image, int(rng.integers(quality[0], quality[1], endpoint=True)))


OPERATIONS: dict[str, Callable[..., Image.Image]] = {
    "hflip": _hflip,
    "rotate_by_one_of": _rotate_by_one_of,
    "rotate": _rotate,
    "overlay_text": _overlay_text,
    "overlay_emoji": _overlay_emoji,
    "resized_crop": _resized_crop,
    "jitter": _jitter,
    "grey": _grey,
    "blur": _blur,
    "jpeg": _jpeg,
}
