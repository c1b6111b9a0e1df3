"""Puts the same weights and images into JAX and PyTorch, and tells where the two differ, and by how much.

    python -m experiments.benchmarks.compare_torch [--model rdcd-effb0-128] [--images sample:train] [--batch 16]
        [--size 224] [--steps 10] [--result NAME]

Stage by stage: the largest and the mean difference of what each stage of the network gives for edited views of real
images, with the running statistics. Then training steps of RDCD from there, with all randomness off (no dropout, no
stochastic depth, the same views, queue, bank and teacher's features in both): after each, the differences of the
losses, the gradients, the parameters and BatchNorm's statistics. Everything is done in float32 and again in float64,
which tells rounding from a difference in what is computed: rounding shrinks by nine digits.

PyTorch's side is torchvision's or timm's network and the paper's losses written plainly. Needs torch, torchvision and,
for FastViT, timm. Writes experiments/results/NAME.json, NAME.md and NAME.png; NAME is compare_torch by default.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
from flax import nnx

from experiments.benchmarks.plain_torch import Student
from rdcd_jax.augment.policies import make_view
from rdcd_jax.core.files import write_aside, write_json, write_text
from rdcd_jax.images.sources import find_images
from rdcd_jax.method.objective import Objective
from rdcd_jax.method.state import init_state, split
from rdcd_jax.method.step import make_train_step
from rdcd_jax.models.descriptor import DescriptorNet, normalize_images
from rdcd_jax.models.layers import gem_pool, l2_normalize
from rdcd_jax.training.optim import make_optimizer
from rdcd_jax.training.record import environment
from rdcd_jax.weights import convert
from rdcd_jax.weights.library import load_model
from rdcd_jax.weights.model import Model, evaluation_mode

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULTS = ROOT / "experiments" / "results"
PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
QUEUE, RATE, MOMENTUM, WEIGHT_DECAY = 1024, 0.01, 0.9, 1e-6
Stages = list[tuple[str, Callable[[jax.Array], jax.Array]]]


def chain(*layers: Callable) -> Callable[[jax.Array], jax.Array]:
    """The layers one after another."""

    def run(x: jax.Array) -> jax.Array:
        for layer in layers:
            x = layer(x)
        return x

    return run


def stages(network: str, backbone: nnx.Module) -> Stages:
    """The parts of a trunk in order, by the name of the layer of PyTorch's that gives the same."""
    if network == "efficientnet_b0":
        parts = [backbone.stem, *(chain(*stage) for stage in backbone.stages), backbone.last]
        head = [("avgpool", gem_pool), ("classifier", backbone.head)]
        return [(f"features.{i}", part) for i, part in enumerate(parts)] + head
    if network == "mobilenet_v3_large":
        parts = [backbone.stem, *backbone.blocks, backbone.last]
        head = [
            ("avgpool", gem_pool),
            ("classifier.1", chain(backbone.hidden, jax.nn.hard_swish)),
            ("classifier", backbone.head),
        ]
        return [(f"features.{i}", part) for i, part in enumerate(parts)] + head
    if network == "fastvit_t12":
        first, *others = (chain(*stage) for stage in backbone.stages)
        later = map(chain, backbone.downsamples, others)
        found = [("stem", chain(*backbone.stem)), ("stages.0", first)]
        found += [(f"stages.{i}", part) for i, part in enumerate(later, 1)]
        return [*found, ("final_conv", backbone.last), ("head.fc", chain(gem_pool, backbone.head))]
    raise SystemExit(f"compare_torch: {network} is not a student that is compared here.")


def make_batches(source: str, policy: str, size: int, batch: int, count: int) -> list[np.ndarray]:
    """Edited views of real images, `count` pairs of batches [2, B, S, S, 3] uint8, the same each time."""
    images, view = find_images(source), make_view(policy, size)
    rng = np.random.default_rng(0)
    return [
        np.stack(
            [
                np.stack([np.asarray(view(images.decode(int(i)), rng)) for i in positions])
                for _ in range(2)
            ]
        )
        for positions in (rng.choice(len(images), batch, replace=False) for _ in range(count))
    ]


class Torch:
    """PyTorch's side: the network, and a training step."""

    def __init__(
        self, network: str, dim: int, tensors: dict[str, np.ndarray], precision: torch.dtype
    ):
        self.precision = precision
        self.student, self.key = (self._filled(Student(dim, network), tensors) for _ in range(2))
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )

    def _filled(self, module: torch.nn.Module, tensors: dict[str, np.ndarray]) -> torch.nn.Module:
        tensors = {name: torch.tensor(np.asarray(value)) for name, value in tensors.items()}
        missing, unexpected = module.load_state_dict(tensors, strict=False)
        assert not unexpected, unexpected
        assert all(name.endswith("num_batches_tracked") for name in missing), missing
        for part in module.modules():
            # Dropout and stochastic depth.
            if isinstance(getattr(part, "p", None), float):
                part.p = 0.0
        return module.to(self.precision)

    def images(self, images: jax.Array) -> torch.Tensor:
        """[B, H, W, 3] as [B, 3, H, W]."""
        return torch.tensor(np.asarray(images)).permute(0, 3, 1, 2).to(self.precision)

    @torch.no_grad()
    def stages(self, images: jax.Array, names: list[str]) -> dict[str, np.ndarray]:
        """What each layer gives, channels last, and the two outputs."""
        self.student.eval()
        found = {}

        def keep(name: str, x: torch.Tensor) -> None:
            x = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
            found[name] = x.numpy().copy()

        layers = dict(self.student.backbone.named_modules())
        handles = [
            layers[name].register_forward_hook(lambda _, __, out, name=name: keep(name, out))
            for name in names
        ]
        feature, descriptor = self.student(self.images(images))
        for handle in handles:
            handle.remove()
        return found | {"feature": feature.numpy(), "descriptor": descriptor.numpy()}

    def begin(self, queue: jax.Array, bank: jax.Array) -> None:
        """Sets queue and bank, and training mode."""
        self.queue, self.bank = (torch.tensor(np.asarray(x)) for x in (queue, bank))
        self.at = 0
        self.student.train(), self.key.train()

    def step(self, query: jax.Array, key: jax.Array, teacher: jax.Array) -> dict[str, float]:
        """A step of RDCD; the losses."""
        with torch.no_grad():
            pairs = zip(self.key.parameters(), self.student.parameters(), strict=True)
            for slow, fast in pairs:
                slow.mul_(0.99).add_(fast, alpha=0.01)
            keys = self.key(self.images(key))[1]
        targets = torch.tensor(np.asarray(teacher))
        feature, descriptor = self.student(self.images(query))
        negative = descriptor @ self.queue.T
        positive = (descriptor * keys).sum(1, keepdim=True)
        labels = torch.zeros(len(keys), dtype=torch.long)
        losses = {
            "info_nce": F.cross_entropy(torch.cat([positive, negative], 1) / 0.07, labels),
            "hard_negative": 5 * -torch.log((1 - negative.max(1).values).clamp(min=1e-3)).mean(),
            "relational_kl": F.kl_div(
                F.log_softmax(feature @ self.bank.T / 0.04, 1),
                F.softmax(targets @ self.bank.T / 0.04, 1),
                reduction="batchmean",
            ),
        }
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        self.optimizer.step()
        rows = torch.arange(self.at, self.at + len(keys))
        self.queue[rows % len(self.queue)] = keys
        self.bank[rows % len(self.bank)] = targets
        self.at += len(keys)
        return {name: float(value.detach()) for name, value in losses.items()}

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """Gradients, parameters and running statistics by name."""
        named = dict(self.student.named_parameters())
        return {
            "gradients": {k: v.grad.numpy() for k, v in named.items()},
            "parameters": {k: v.detach().numpy() for k, v in named.items()},
            "running statistics": {
                k: v.numpy() for k, v in self.student.named_buffers() if v.is_floating_point()
            },
        }


def keep_gradients() -> optax.GradientTransformation:
    """Lets updates pass, and has the last of them as its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda updates, *_: (updates, updates)
    )


class Jax:
    """JAX's side, the package itself."""

    def __init__(self, network: str, module: DescriptorNet, dim: int, feature_dim: int):
        self.network, self.module, self.dim, self.feature_dim = network, module, dim, feature_dim

    def stages(self, images: jax.Array) -> dict[str, np.ndarray]:
        """What each stage gives, and the two outputs."""

        @nnx.jit
        def run(module, x):
            found = {}
            for name, part in stages(self.network, module.backbone):
                found[name] = x = part(x)
            return found | {
                "feature": l2_normalize(x),
                "descriptor": l2_normalize(module.projector(x)),
            }

        found = jax.tree.map(np.asarray, run(evaluation_mode(self.module), images))
        for name, whole in zip(
            ("feature", "descriptor"), evaluation_mode(self.module)(images), strict=True
        ):
            # The stages are the network.
            np.testing.assert_allclose(found[name], whole, atol=1e-5)
        return found

    def begin(self) -> tuple[jax.Array, jax.Array]:
        """Prepares training; gives queue and bank."""
        student = nnx.view(
            self.module, deterministic=True, use_running_average=False, raise_if_not_found=False
        )
        self.graph = split(student)[0]
        optimizer = optax.chain(
            keep_gradients(),
            make_optimizer("sgd", lambda step: RATE, weight_decay=WEIGHT_DECAY, momentum=MOMENTUM),
        )
        self.state = init_state(
            student,
            optimizer,
            queue_size=QUEUE,
            bank_size=QUEUE,
            dim=self.dim,
            feature_dim=self.feature_dim,
            rng=jax.random.key(0),
        )
        self.run = jax.jit(make_train_step(self.graph, optimizer, Objective(), None))
        return self.state.queue, self.state.bank

    def step(self, query: jax.Array, key: jax.Array, teacher: jax.Array) -> dict[str, float]:
        """A step of RDCD; the losses."""
        batch = {"query": query, "key": key, "teacher": teacher}
        self.state, metrics = self.run(self.state, None, batch, jax.random.key(1))
        return {k: float(metrics[k]) for k in ("info_nce", "hard_negative", "relational_kl")}

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """Gradients, parameters and running statistics by PyTorch's names."""
        params, statistics = self.state.params, self.state.batch_stats
        both = self._named(params, statistics)
        statistic = {name for name in both if "running_" in name}
        gradients = self._named(self.state.opt_state[0], statistics)
        return {
            "gradients": {k: v for k, v in gradients.items() if k not in statistic},
            "parameters": {k: v for k, v in both.items() if k not in statistic},
            "running statistics": {k: both[k] for k in statistic},
        }

    def _named(self, params, statistics) -> dict[str, np.ndarray]:
        return convert.to_torch(nnx.merge(self.graph, params, statistics), self.network)


def difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """The largest and the mean absolute difference, and the largest value that they are of."""
    apart = np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
    return {
        "largest": float(apart.max()),
        "mean": float(apart.mean()),
        "largest value": float(np.abs(theirs).max()),
    }


def all_differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict:
    """The same over many arrays, and which of them is furthest apart."""
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    names = sorted(ours)
    flat = [np.concatenate([np.ravel(each[name]) for name in names]) for each in (ours, theirs)]
    furthest = max(names, key=lambda name: difference(ours[name], theirs[name])["largest"])
    return {**difference(*flat), "furthest": furthest}


def compare(
    model: Model, batches: list[np.ndarray], features: list[np.ndarray], precision: str
) -> dict:
    """Both sides in one precision: differences by stage, and after each step."""
    dtype = jnp.dtype(precision)
    tensors = {
        name: value.astype(dtype)
        for name, value in convert.to_torch(model.module, model.network).items()
    }
    # The same structure at this precision.
    state = jax.tree.map(
        lambda x: x.astype(dtype), nnx.state(model.module, (nnx.Param, nnx.BatchStat))
    )
    module = nnx.clone(model.module)
    nnx.update(module, state)
    ours = Jax(model.network, module, model.dim, model.feature_dim)
    theirs = Torch(model.network, model.dim, tensors, PRECISIONS[precision])
    views = [[normalize_images(jnp.asarray(x)).astype(dtype) for x in pair] for pair in batches]
    stages_here = ours.stages(views[0][0])
    names = [name for name, _ in stages(model.network, module.backbone)]
    stages_there = theirs.stages(views[0][0], names)
    found = {
        "stages": {
            name: difference(stages_here[name], stages_there[name].reshape(stages_here[name].shape))
            for name in [*names, "feature", "descriptor"]
        },
        "steps": [],
    }
    theirs.begin(*ours.begin())
    for (query, key), teacher in zip(views, features, strict=True):
        teacher = jnp.asarray(teacher, dtype)
        losses = [side.step(query, key, teacher) for side in (ours, theirs)]
        arrays = [side.arrays() for side in (ours, theirs)]
        row = {name: {"jax": losses[0][name], "torch": losses[1][name]} for name in losses[0]}
        row |= {what: all_differences(arrays[0][what], arrays[1][what]) for what in arrays[0]}
        row["queue"] = difference(ours.state.queue, theirs.queue.numpy())
        found["steps"].append(row)
        print(f"{precision}: step {len(found['steps'])} done", flush=True)
    return found


def markdown(result: dict) -> str:
    """The tables."""
    found = result["found"]
    lines = [
        f"`{result['command']}`: {result['settings']['model']}, JAX against PyTorch"
        f" {result['torch']}, largest / mean absolute difference.",
        "",
        "| stage | largest value | float32 | float64 |",
        "|---|---|---|---|",
    ]
    for name, row in found["float32"]["stages"].items():
        wide = found["float64"]["stages"][name]
        lines.append(
            f"| {name} | {row['largest value']:.3g} | {row['largest']:.1e} / {row['mean']:.1e} |"
            f" {wide['largest']:.1e} / {wide['mean']:.1e} |"
        )
    kinds = ("gradients", "parameters", "running statistics", "queue")
    terms = ("info_nce", "hard_negative", "relational_kl")
    for precision, each in found.items():
        lines += [
            "",
            f"After each training step, {precision} (for the losses their difference):",
            "",
            f"| step | {' | '.join((*terms, *kinds))} |",
            "|---|" + "---|" * (len(terms) + len(kinds)),
        ]
        for number, row in enumerate(each["steps"], 1):
            cells = [f"{abs(row[t]['jax'] - row[t]['torch']):.1e}" for t in terms]
            cells += [f"{row[k]['largest']:.1e} / {row[k]['mean']:.1e}" for k in kinds]
            lines.append(f"| {number} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(found: dict, path: pathlib.Path) -> None:
    """Differences by stage and by step, both precisions."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for precision, each in found.items():
        names = list(each["stages"])
        # Relative to the stage's largest value, so that stages compare.
        heights = [row["largest"] / row["largest value"] for row in each["stages"].values()]
        left.semilogy(names, heights, marker="o", label=precision)
        for what, style in (("gradients", ":"), ("parameters", "-")):
            heights = [row[what]["largest"] for row in each["steps"]]
            steps = range(1, len(heights) + 1)
            right.semilogy(steps, heights, style, marker="o", label=f"{what}, {precision}")
    left.tick_params(axis="x", rotation=90)
    left.set(title="by stage", ylabel="largest difference / largest value")
    right.set(title="after each training step", xlabel="step", ylabel="largest difference")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    with write_aside(path) as aside:
        drawing.savefig(aside, dpi=120)


def main() -> None:
    """Compares, and writes the three files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="rdcd-effb0-128")
    parser.add_argument("--teacher", default="sscd")
    parser.add_argument("--images", default="sample:train")
    parser.add_argument("--policy", default="ADVANCED")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--result", default="compare_torch", metavar="NAME")
    options = parser.parse_args()
    model, teacher = load_model(options.model), load_model(options.teacher)
    batches = make_batches(
        options.images, options.policy, options.size, options.batch, options.steps
    )
    embed = nnx.jit(lambda module, images: module(normalize_images(images))[0])
    features = [np.asarray(embed(teacher.module, pair[0])) for pair in batches]
    found = {"float32": compare(model, batches, features, "float32")}
    with jax.enable_x64(True):
        found["float64"] = compare(model, batches, features, "float64")
    result = {
        "command": " ".join(["python -m experiments.benchmarks.compare_torch", *sys.argv[1:]]),
        "settings": vars(options),
        "environment": environment(),
        "torch": torch.__version__,
        "found": found,
    }
    write_json(RESULTS / f"{options.result}.json", result)
    write_text(RESULTS / f"{options.result}.md", markdown(result))
    plot(found, RESULTS / f"{options.result}.png")
    print(markdown(result))


if __name__ == "__main__":
    main()
