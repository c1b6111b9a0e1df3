"""Which operations make a view, how often each fires and from which ranges it draws.

A policy is a tuple of steps, taken in their order. One of a user's own is given as such a tuple, or, in a config or on
the command line, as a line of text:

    config.data.policy = "hflip 0.5; resized_crop 1 scale=0.3,1 ratio=0.75,1.33; blur 0.3 radius=0.3,1.5"
"""

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from rdcd_jax.augment import assets
from rdcd_jax.augment.host.operations import OPERATIONS, Drawn, Range
from rdcd_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Step:
    """One line of a policy.

    Attributes:
        operation: a name from `operations.OPERATIONS`.
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
# ADVANCED for views of 64 to 128 pixels and short runs: blur in proportion to the view, milder crops and colours; not
# a published policy.
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


# What a parameter may range over; the others, of any number.
_WITHIN = {
    "scale": (1e-6, 1),
    "ratio": (1e-3, 1e3),
    "size": (0, 1),
    "opacity": (0, 1),
    "brightness": (0, 100),
    "contrast": (0, 100),
    "saturation": (0, 100),
    "hue": (-0.5, 0.5),
    "radius": (0, 1000),
    "quality": (0, 100),
    "degrees": (-1e6, 1e6),
}

# What is drawn from the whole numbers of its range.
_WHOLE = (("rotate", "degrees"), ("jpeg", "quality"))


def find_policy(policy: str | Sequence[Step]) -> Policy:
    """The policy of that name, or the one given, checked.

    Args:
        policy: a name from `POLICIES`; or steps, also as text: separated by `;`, each an operation, its probability,
            and `name=low,high` for each of its parameters.

    Raises:
        UserError: an unknown policy, operation or parameter, a parameter without its range or with one that makes no
            sense, a probability outside 0..1, or not exactly one certain `resized_crop`.
    """
    if isinstance(policy, str):
        if policy in POLICIES:
            return POLICIES[policy]
        if len(policy.split()) <= 1:
            raise UserError(
                f"Unknown policy {policy!r}: choose one of {', '.join(POLICIES)}, or write out the steps, such as"
                " 'hflip 0.5; resized_crop 1 scale=0.3,1 ratio=0.75,1.33'."
            )
        policy = [_read_step(text) for text in policy.split(";") if text.strip()]
    for step in policy:
        _check(step)
    if [step.probability for step in policy if step.operation == "resized_crop"] != [1]:
        raise UserError("A policy needs exactly one resized_crop, with probability 1.")
    return tuple(policy)


def policy_text(policy: Sequence[Step]) -> str:
    """A policy as the text that `find_policy` reads."""
    return "; ".join(
        " ".join(
            [
                step.operation,
                str(step.probability),
                *(f"{name}={','.join(map(str, values))}" for name, values in step.ranges.items()),
            ]
        )
        for step in policy
    )


@dataclasses.dataclass(frozen=True)
class View:
    """Makes one view of an image; what `make_view` returns, a class so that it can be pickled."""

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
        return self.apply(image, self.draw(image.size, rng))

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> list[Drawn]:
        """What is done to make one view.

        Args:
            size: width and height of the image.
            rng: where every random number comes from.

        Returns:
            The operations that fire, with their parameters, in their order.
        """
        drawn = []
        for step in self.policy:
            if rng.random() < step.probability:
                draw = OPERATIONS[step.operation].draw
                values = draw(rng, size, self.image_size, **step.ranges)
                if values is not None:
                    drawn.append(Drawn(step.operation, values))
            if step.operation == "resized_crop":
                size = (self.image_size, self.image_size)
        return drawn

    def apply(self, image: Image.Image, drawn: Sequence[Drawn]) -> np.ndarray:
        """The view that was drawn.

        Args:
            image: RGB, of the size that was drawn for.
            drawn: from `draw`.

        Returns:
            [image_size, image_size, 3] uint8.
        """
        for operation, values in _moving_only_what_is_cropped(drawn):
            image = OPERATIONS[operation].apply(image, **values)
        return np.array(image)

    @property
    def useful_side(self) -> int:
        """Short side in pixels from which on no crop of the policy would have to be enlarged."""
        (crop,) = (step for step in self.policy if step.operation == "resized_crop")
        narrowest = min(crop.ranges["ratio"][0], 1 / crop.ranges["ratio"][1])
        return math.ceil(self.image_size / math.sqrt(crop.ranges["scale"][0] * narrowest))


def has_overlays(policy: str | Sequence[Step]) -> bool:
    """Whether a policy, see `find_policy`, overlays text or emoji."""
    return any(step.operation.startswith("overlay_") for step in find_policy(policy))


def make_view(policy: str | Sequence[Step], image_size: int) -> View:
    """A function (RGB image, generator) -> [image_size, image_size, 3] uint8.

    Args:
        policy: see `find_policy`.
        image_size: side of the square views in pixels, at least 1.

    Raises:
        UserError: see `find_policy`; or the policy overlays and the images for it are missing.
    """
    policy = find_policy(policy)
    if image_size < 1:
        raise UserError(f"image_size={image_size}: a view needs a side of at least one pixel.")
    if has_overlays(policy):
        assets.assets_folder()  # reported here, before any worker starts
    return View(policy, image_size)


def _moving_only_what_is_cropped(drawn: Sequence[Drawn]) -> list[Drawn]:
    """The same operations; where a crop follows a flip or rotation, only the crop's box is moved."""
    drawn = list(drawn)
    for i in range(1, len(drawn)):
        move, crop = drawn[i - 1], drawn[i]
        if crop.operation == "resized_crop" and move.operation in _MOVES:
            left, top, right, bottom = box = crop.values["box"]
            whole = (0, 0, right - left, bottom - top)
            drawn[i - 1] = Drawn(move.operation, {**move.values, "box": box})
            drawn[i] = Drawn(crop.operation, {**crop.values, "box": whole})
    return drawn


# Those that can give a part of their result.
_MOVES = ("hflip", "rotate_by_one_of", "rotate")


def _read_step(text: str) -> Step:
    operation, *words = text.split()
    try:
        probability, *ranges = words
        pairs = [word.split("=") for word in ranges]
        values = {name: tuple(map(_number, numbers.split(","))) for name, numbers in pairs}
        if len(values) < len(pairs):
            raise ValueError
        return Step(operation, float(probability), values)
    except ValueError:
        raise UserError(
            f"The step {text.strip()!r} should be an operation, its probability, and name=low,high for each of its"
            " parameters, such as 'blur 0.3 radius=0.3,1.5'."
        ) from None


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value


def _check(step: Step) -> None:
    if step.operation not in OPERATIONS:
        raise UserError(
            f"Unknown operation {step.operation!r}: choose one of {', '.join(OPERATIONS)}."
        )
    if not 0 <= step.probability <= 1:
        raise UserError(f"{step.operation}: probability {step.probability} is not within 0 to 1.")
    known = inspect.signature(OPERATIONS[step.operation].draw).parameters.values()
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
        low, high = _WITHIN[name]
        if not all(low <= value <= high for value in values):
            raise UserError(f"{step.operation}: {name}={values!r} is not within {low} to {high}.")
        if (step.operation, name) in _WHOLE and not all(value == int(value) for value in values):
            raise UserError(f"{step.operation}: {name}={values!r} should be whole numbers.")
