"""Times training views from JPEGs against the same policies written with torchvision's transforms.

    python -m experiments.benchmarks.input_pipeline [--images 300] [--workers 1] [--rounds 5]
        [--policies ADVANCED,SIMCLR,...]

Bundled images are resized to 512x384 and saved at quality 90. Here: `make_batches`, as training reads them.
Torchvision: transforms v2 in a torch DataLoader, with text, emoji and JPEG through Pillow, the same fonts and emoji.
Both decode an image once and make two views of 224 pixels of it, so a view's time holds half a decoding; "decode"
counts images, decoded and nothing else. Both run in as many worker processes, each with one thread, in batches of 32;
the two alternate in one run and medians are compared. The result goes to experiments/results/bench_input.json.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import io
import itertools
import json
import os
import pathlib
import random
import statistics
import sys
import tempfile
import time
import warnings

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from rdcd_jax.augment import assets
from rdcd_jax.augment.policies import POLICIES, Step
from rdcd_jax.images.decode import decode_rgb
from rdcd_jax.images.sources import find_images

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "bench_input.json"
SIDE, BATCH, WARM_UP = 224, 32, 6


def make_images(folder: pathlib.Path, count: int) -> None:
    """Writes 512x384 JPEGs of quality 90 from the bundled images."""
    for i, path in enumerate(
        itertools.islice(itertools.cycle(find_images("sample:train").paths), count)
    ):
        image = decode_rgb(path).resize((512, 384), Image.Resampling.BICUBIC)
        image.save(folder / f"{i:04}.jpg", quality=90)


class OverTorchvision:
    """The operations that torchvision has not, as callables on Pillow images, with the published pipeline's means."""

    def __init__(self, ranges):
        self.ranges = ranges

    def _between(self, name: str) -> float:
        return random.uniform(*self.ranges[name])


class Text(OverTorchvision):
    """One line of text in a random font."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Writes it on a copy."""
        path = random.choice(assets.font_files())
        size = max(1, int(min(image.size) * self._between("size")))
        font = ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
        letters = random.choices(assets.characters(path), k=100)
        with contextlib.suppress(OSError):
            while letters and font.getbbox("".join(map(chr, letters)))[2] > image.width:
                letters = letters[: len(letters) // 2]
            text = "".join(map(chr, letters[: random.randint(1, max(1, len(letters)))]))
            _, _, right, bottom = font.getbbox(text)
            ink = Image.new("L", (max(1, int(right)), max(1, int(bottom))))
            fill = int(255 * self._between("opacity"))
            ImageDraw.Draw(ink).text((0, 0), text, fill=fill, font=font)
            image = image.copy()
            room = image.width - ink.width, image.height - ink.height
            corner = tuple(int(random.random() * max(0, each)) for each in room)
            image.paste(tuple(random.choices(range(256), k=3)), corner, ink)
        return image


class Emoji(OverTorchvision):
    """A random emoji."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Pastes it on a copy."""
        with Image.open(random.choice(assets.emoji_files())) as file:
            emoji = file.convert("RGBA")
        side = max(1, int(self._between("size") * min(image.size)))
        emoji = emoji.resize((side, side), Image.Resampling.BILINEAR)
        opacity = self._between("opacity")
        mask = emoji.getchannel("A").point(lambda level: int(level * opacity))
        image = image.copy()
        corner = tuple(int(random.random() * (each - side)) for each in image.size)
        image.paste(emoji.convert("RGB"), corner, mask)
        return image


class Blur(OverTorchvision):
    """Pillow's blur, as the published pipeline uses it."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Blurs."""
        return image.filter(ImageFilter.GaussianBlur(self._between("radius")))


class Jpeg(OverTorchvision):
    """There and back through Pillow's encoder."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Compresses."""
        file = io.BytesIO()
        image.save(file, "JPEG", quality=round(self._between("quality")))
        return Image.open(file).convert("RGB")


def torchvision_step(step: Step):
    """A step in torchvision's terms."""
    from torchvision.transforms import v2

    ranges = {name: tuple(values) for name, values in step.ranges.items()}
    bilinear = v2.InterpolationMode.BILINEAR
    if step.operation == "resized_crop":
        return v2.RandomResizedCrop(SIDE, ranges["scale"], ranges["ratio"], bilinear)
    if step.operation == "hflip":
        return v2.RandomHorizontalFlip(step.probability)
    if step.operation == "grey":
        return v2.RandomGrayscale(step.probability)
    made = {
        "rotate_by_one_of": lambda: v2.RandomChoice(
            [v2.RandomRotation((d, d), bilinear) for d in ranges["degrees"]]
        ),
        "rotate": lambda: v2.RandomRotation(ranges["degrees"], bilinear),
        "jitter": lambda: v2.ColorJitter(**ranges),
        "overlay_text": lambda: Text(ranges),
        "overlay_emoji": lambda: Emoji(ranges),
        "blur": lambda: Blur(ranges),
        "jpeg": lambda: Jpeg(ranges),
    }[step.operation]()
    return v2.RandomApply([made], step.probability)


class TorchvisionViews:
    """Two views of each image, as a torch DataLoader wants them; without a policy, only decoding."""

    def __init__(self, paths, policy: str | None):
        self.paths, self.policy = paths, policy

    def __len__(self) -> int:
        """More than one run reads."""
        return 10**9

    @functools.cached_property
    def transform(self):
        """The policy, made where it is used: in the worker."""
        import torch

        declare_operators()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchvision.transforms import v2
        # Any seed will do here; both of its generators are used.
        random.seed(torch.initial_seed())
        return v2.Compose([*map(torchvision_step, POLICIES[self.policy]), v2.PILToTensor()])

    def __getitem__(self, position: int):
        """[3, S, S] uint8 twice; for no policy a number."""
        with Image.open(self.paths[position % len(self.paths)]) as file:
            image = file.convert("RGB")
        return 0 if self.policy is None else (self.transform(image), self.transform(image))


@functools.cache
def declare_operators():
    """Declares two operators of torchvision whose absence breaks its import on some machines; none is called."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchvision  # noqa: F401
        return None
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library


class DecodedHere:
    """Decodes as training does; for the same DataLoader, so that nothing else differs."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self) -> int:
        """More than one run reads."""
        return 10**9

    def __getitem__(self, position: int) -> int:
        """Nothing but the time it takes."""
        decode_rgb(self.paths[position % len(self.paths)], min_side_hint=915)
        return 0


def torch_batches(data, workers: int):
    """Batches without end of a torch data set."""
    import torch

    return iter(
        torch.utils.data.DataLoader(
            data, BATCH, num_workers=workers, multiprocessing_context="spawn"
        )
    )


@contextlib.contextmanager
def contenders(folder: pathlib.Path, policy: str | None, workers: int):
    """Iterators over batches, by name; their workers wait when nobody reads."""
    from rdcd_jax.augment.policies import make_view
    from rdcd_jax.training.pipeline import Views, Workers, make_batches

    images = find_images(folder)
    theirs = torch_batches(TorchvisionViews(images.paths, policy), workers)
    if policy is None:
        yield {"here": torch_batches(DecodedHere(images.paths), workers), "torchvision": theirs}
        return
    views, reading = Views(make_view(policy, SIDE)), Workers(workers)
    with make_batches(images, views, batch_size=BATCH, seed=0, workers=reading) as ours:
        yield {"here": ours, "torchvision": theirs}


def take(batches, count: int) -> None:
    """Reads so many."""
    for _ in range(count):
        next(batches)


def measure(folder: pathlib.Path, policy: str | None, options) -> dict[str, list[float]]:
    """Views (or decoded images) a second and core, of each round."""
    each = BATCH * (2 if policy else 1)
    speeds = {"here": [], "torchvision": []}
    with contenders(folder, policy, options.workers) as batches:
        # Both have started and read their fonts and emoji before either is timed.
        for given in batches.values():
            take(given, 10)
        for _ in range(options.rounds):
            for name, given in batches.items():
                # The worker makes some ahead while the other is timed, for the most part in this pause.
                time.sleep(1.5)
                # That is taken first, else it would be counted as made in no time.
                take(given, WARM_UP * options.workers)
                begun = time.perf_counter()
                take(given, options.batches)
                took = time.perf_counter() - begun
                speeds[name].append(round(options.batches * each / took / options.workers, 1))
    return speeds


def main() -> None:
    """Alternates the two, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=12, help="batches in each measurement")
    parser.add_argument(
        "--policies", default="ADVANCED,ADVANCED_NO_OVERLAY,STRONG_BLUR,SIMCLR,MILD"
    )
    options = parser.parse_args()
    # Workers are the unit that is measured: one core each.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    speeds = {}
    with tempfile.TemporaryDirectory() as name:
        make_images(pathlib.Path(name), options.images)
        for policy in (None, *options.policies.split(",")):
            speeds[policy or "decode"] = measure(pathlib.Path(name), policy, options)
            print(policy or "decode", speeds[policy or "decode"], flush=True)
    medians = {
        policy: {name: statistics.median(found) for name, found in each.items()}
        for policy, each in speeds.items()
    }
    result = {
        "settings": vars(options)
        | {name: importlib.metadata.version(name) for name in ("torch", "torchvision")},
        "views a second and core (decode: images)": speeds,
        "medians": medians,
        "here / torchvision": {
            policy: round(each["here"] / each["torchvision"], 3) for policy, each in medians.items()
        },
    }
    print(json.dumps(result, indent=2))

    from rdcd_jax.core.files import write_json
    from rdcd_jax.training.record import environment

    write_json(RESULT, {"environment": environment(), **result})


if __name__ == "__main__":
    main()
