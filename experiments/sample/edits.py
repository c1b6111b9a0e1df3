"""Edits that people make to images before they post them again, for the sample's queries.

Each edit takes an image, a numpy generator and another image, and returns the edited image.
The kinds of edit are those of DISC2021 (colour, quality, geometry, overlays); the code and the
strengths are our own.
"""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from rdcd_jax.augment import assets

WORDS = [
    "when you see it",
    "so true",
    "monday again",
    "look at this",
    "not today",
    "wait for it",
    "best day ever",
    "nobody:",
    "me at 3 am",
    "share if you agree",
    "summer 2021",
    "caption this",
    "for sale",
    "no words",
    "why not",
]


def _share(image: Image.Image, fraction: float) -> int:
    return max(1, round(min(image.size) * fraction))


def brightness(image, rng, _):
    """Darker or lighter."""
    return ImageEnhance.Brightness(image).enhance(rng.choice([rng.uniform(0.3, 0.6), 1.8]))


def contrast(image, rng, _):
    """Flatter or harder."""
    return ImageEnhance.Contrast(image).enhance(rng.choice([rng.uniform(0.3, 0.6), 2.2]))


def saturation(image, rng, _):
    """Paler or more colourful."""
    return ImageEnhance.Color(image).enhance(rng.choice([0.3, 3.0]))


def hue(image, rng, _):
    """All colours turned round the wheel."""
    bands = list(image.convert("HSV").split())
    shift = int(rng.integers(30, 226))
    bands[0] = bands[0].point(lambda value: (value + shift) % 256)
    return Image.merge("HSV", bands).convert("RGB")


def grey(image, rng, _):
    """Without colour."""
    return image.convert("L").convert("RGB")


def posterise(image, rng, _):
    """Two or three bits a channel."""
    return ImageOps.posterize(image, int(rng.integers(2, 4)))


def blur(image, rng, _):
    """Out of focus."""
    return image.filter(ImageFilter.GaussianBlur(_share(image, rng.uniform(0.012, 0.03))))


def pixelate(image, rng, _):
    """Large square pixels."""
    small = image.resize([max(8, round(side * rng.uniform(0.12, 0.3))) for side in image.size])
    return small.resize(image.size, Image.Resampling.NEAREST)


def jpeg(image, rng, _):
    """Saved at very low quality."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(4, 16)))
    return Image.open(buffer).convert("RGB")


def noise(image, rng, _):
    """Grain."""
    grain = rng.normal(0, rng.uniform(20, 50), (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def sharpen(image, rng, _):
    """Over-sharpened edges."""
    return ImageEnhance.Sharpness(image).enhance(rng.uniform(8, 20))


def crop(image, rng, _):
    """A part of the image, an eighth to a half of its area."""
    scale, squeeze = np.sqrt(rng.uniform(0.12, 0.5)), rng.uniform(0.85, 1.18)
    width = round(min(1, scale * squeeze) * image.width)
    height = round(min(1, scale / squeeze) * image.height)
    left = int(rng.integers(0, image.width - width + 1))
    top = int(rng.integers(0, image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def rotate(image, rng, _):
    """Turned by a little or by anything, the corners filled."""
    angle = rng.choice([rng.uniform(-25, 25), rng.uniform(-180, 180)])
    fill = tuple(int(value) for value in rng.integers(0, 256, 3))
    return image.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=fill)


def quarter_turn(image, rng, _):
    """Turned by 90, 180 or 270 degrees."""
    return image.rotate(90 * int(rng.integers(1, 4)), expand=True)


def mirror(image, rng, _):
    """Left for right."""
    return ImageOps.mirror(image)


def flip(image, rng, _):
    """Upside down."""
    return ImageOps.flip(image)


def squeeze(image, rng, _):
    """Another aspect ratio."""
    factor = rng.choice([rng.uniform(0.45, 0.65), rng.uniform(1.5, 2.0)])
    return image.resize((max(1, round(image.width * factor)), image.height))


def pad(image, rng, _):
    """Wide bars of one colour round it."""
    fill = tuple(int(value) for value in rng.integers(0, 256, 3))
    x, y = (round(side * rng.uniform(0.05, 0.4)) for side in image.size)
    return ImageOps.expand(image, (x, y), fill)


def slant(image, rng, _):
    """Seen from the side."""
    w, h = image.size
    x, y = rng.uniform(0.05, 0.25, 2) * (w, h)
    corners = [(0, 0), (0, h), (w, h), (w, 0)]
    seen = [(x, 0), (0, h), (w, h - y), (w - x / 2, y)]
    rows = []
    for (u, v), (a, b) in zip(seen, corners, strict=True):
        rows += [[u, v, 1, 0, 0, 0, -a * u, -a * v], [0, 0, 0, u, v, 1, -b * u, -b * v]]
    terms = np.linalg.solve(np.array(rows), np.array(corners, float).ravel())
    return image.transform(
        image.size, Image.Transform.PERSPECTIVE, tuple(terms), Image.Resampling.BICUBIC
    )


def text(image, rng, _):
    """One to three coloured lines written across."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    letters = set(map(ord, "".join(WORDS)))
    fonts = [f for f in assets.font_files() if letters <= set(assets.characters(f))]
    for _ in range(int(rng.integers(1, 4))):
        font = assets.read_font(
            fonts[rng.integers(len(fonts))], _share(image, rng.uniform(0.1, 0.22))
        )
        position = rng.uniform((-0.05, 0), (0.4, 0.85)) * image.size
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        draw.text(tuple(position), WORDS[rng.integers(len(WORDS))], colour, font)
    return image


def meme(image, rng, _):
    """A white bar with a line of text above it."""
    bar = round(image.height * rng.uniform(0.2, 0.45))
    font = assets.read_font(_plain_font(), max(8, min(bar // 2, image.width // 9)))
    made = Image.new("RGB", (image.width, image.height + bar), "white")
    made.paste(image, (0, bar))
    line = WORDS[rng.integers(len(WORDS))].upper()
    ImageDraw.Draw(made).text((made.width // 2, bar // 2), line, "black", font, anchor="mm")
    return made


def emoji(image, rng, _):
    """One to four emoji stuck on it."""
    image = image.copy()
    files = assets.emoji_files()
    for _ in range(int(rng.integers(1, 5))):
        side = _share(image, rng.uniform(0.2, 0.55))
        sticker = assets.read_emoji(files[rng.integers(len(files))]).resize((side, side))
        position = [
            int(rng.integers(-side // 3, max(1, length - side // 2))) for length in image.size
        ]
        image.paste(sticker, tuple(position), sticker)
    return image


def onto(image, rng, other):
    """Placed on another image, covering a twelfth to a third of it."""
    side = np.sqrt(rng.uniform(0.08, 0.35))
    ground = ImageOps.fit(other, image.size)
    small = image.resize([max(1, round(length * side)) for length in image.size])
    room = [ground.width - small.width + 1, ground.height - small.height + 1]
    ground.paste(small, tuple(int(rng.integers(length)) for length in room))
    return ground


def under(image, rng, other):
    """Another image stuck on it, or laid over it half transparent."""
    if rng.random() < 0.5:
        return Image.blend(image, ImageOps.fit(other, image.size), rng.uniform(0.25, 0.45))
    image = image.copy()
    side = rng.uniform(0.35, 0.6)
    small = ImageOps.fit(other, [max(1, round(length * side)) for length in image.size])
    image.paste(small, tuple(int(rng.integers(0, a - b + 1)) for a, b in _pairs(image, small)))
    return image


def screenshot(image, rng, _):
    """Shown in an application's window: bars, a name, buttons, text below."""
    unit = max(6, image.width // 12)
    dark = rng.random() < 0.5
    paper, ink = ("#18191c", "#d8d8d8") if dark else ("#f4f5f7", "#303030")
    made = Image.new("RGB", (image.width + unit, image.height + 6 * unit), paper)
    draw = ImageDraw.Draw(made)
    font = assets.read_font(_plain_font(), max(8, round(unit * 0.8)))
    draw.ellipse((unit // 2, unit // 2, 2 * unit, 2 * unit), fill="#5b8def")
    draw.text((2.4 * unit, 0.7 * unit), WORDS[rng.integers(len(WORDS))], ink, font)
    made.paste(image, (unit // 2, round(2.5 * unit)))
    for position in range(3):
        at = unit // 2 + position * 3 * unit
        box = (at, image.height + 3 * unit, at + 2 * unit, image.height + 3.9 * unit)
        draw.rounded_rectangle(box, unit // 4, outline=ink)
    draw.text((unit // 2, image.height + 4.4 * unit), WORDS[rng.integers(len(WORDS))], ink, font)
    return made


def _plain_font():
    return next(font for font in assets.font_files() if font.stem == "CaviarDreams")


def _pairs(image, small):
    return zip(image.size, small.size, strict=True)


GROUPS = {
    "colour": (brightness, contrast, saturation, hue, grey, posterise),
    "quality": (blur, pixelate, jpeg, noise, sharpen),
    "geometry": (crop, crop, rotate, quarter_turn, mirror, flip, squeeze, pad, slant),
    "overlay": (text, meme, emoji, onto, under, screenshot),
}


def edited(
    image: Image.Image, rng: np.random.Generator, other: Image.Image
) -> tuple[Image.Image, list[str]]:
    """Makes one to three edits of different groups, in random order.

    Args:
        image: the original, RGB.
        rng: gives every random choice.
        other: the image that edits with a second image use, RGB.

    Returns:
        The edited image, RGB, and the names of the edits as made.
    """
    count = rng.choice([1, 2, 3], p=[0.15, 0.4, 0.45])
    names = []
    for group in rng.permutation(list(GROUPS))[:count]:
        edit = GROUPS[group][rng.integers(len(GROUPS[group]))]
        image = edit(image, rng, other)
        names.append(edit.__name__)
    return image, names
