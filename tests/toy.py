"""A network that compiles in a second, images and a config: for tests of what surrounds a step."""

import csv
import json
import pathlib

import jax
import numpy as np
from flax import nnx
from PIL import Image

from rdcd_jax import models
from rdcd_jax.embedding.descriptors import Descriptors, write_descriptors
from rdcd_jax.embedding.stream import embed_images
from rdcd_jax.images.sources import find_images
from rdcd_jax.models import registry
from rdcd_jax.models.layers import BatchNorm, conv, drawn, gem_pool
from rdcd_jax.training.config import load_config
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.weights import tables
from rdcd_jax.weights.library import export_model
from rdcd_jax.weights.model import Model, evaluation_mode

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
DATA = pathlib.Path(__file__).parent / "data"
FEATURE = 16


class ToyBackbone(nnx.Module):
    """One convolution with its batch norm, GeM, dropout, and the wide head."""

    def __init__(self, *, feature_dim, rngs, dtype=None):
        self.conv = conv(3, 8, 3, stride=2, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(8, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(0.2)
        self.fc = nnx.Linear(
            8, feature_dim, kernel_init=drawn(nnx.initializers.lecun_normal()), rngs=rngs
        )

    def __call__(self, images, rngs=None):
        pooled = gem_pool(jax.nn.silu(self.bn(self.conv(images))))
        return self.fc(self.dropout(pooled, rngs=rngs))


def add_toys(monkeypatch):
    """Registers the networks `toy` and `other_toy` for the length of a test."""
    layers = ["backbone.conv", "backbone.bn", "backbone.fc"]
    for name in ("toy", "other_toy"):
        row = registry.Network(ToyBackbone, FEATURE)
        monkeypatch.setitem(registry.NETWORKS, name, row)
        monkeypatch.setitem(tables.LAYERS, name, lambda: {layer: layer for layer in layers})


def make_images(folder, count, *, prefix="T", size=48, seed=0):
    """Writes `count` JPEGs of coloured noise on a gradient, each unlike the others."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    slope = np.linspace(0, 1, size)[:, None, None]
    for i in range(count):
        colours = random.random((2, 1, 3))
        coarse = random.random((6, 6, 3)).repeat(size // 6, 0).repeat(size // 6, 1)
        image = 0.5 * (colours[0] * slope + colours[1] * (1 - slope)) + 0.5 * coarse
        Image.fromarray((255 * image).astype(np.uint8)).save(folder / f"{prefix}{i:05d}.jpg")
    return folder


def make_features(path, images, dim=FEATURE):
    """Writes made-up unit descriptors of every image of a folder."""
    ids = np.asarray(sorted(image.stem for image in images.glob("*.jpg")))
    rows = np.random.default_rng(1).standard_normal((len(ids), dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    write_descriptors(path, Descriptors(ids, rows, "made up"))
    return path


def unit_rows(count, seed=0, dim=8):
    """[count, dim] float32 of unit length."""
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_export(folder, *, network="toy", dim=4, feature_dim=FEATURE, seed=0, folded=False):
    """Exports a toy with random weights and statistics; a folded one has mean 0 and scale 1."""
    rngs = nnx.Rngs(seed)
    module = models.build(network, dim=dim, feature_dim=feature_dim, rngs=rngs)
    if not folded:
        norm = module.backbone.bn
        norm.mean[...] = 0.1 + 0.2 * rngs.params.normal(norm.mean.shape)
        norm.scale[...] = 1 + 0.2 * rngs.params.normal(norm.scale.shape)
    export_model(folder, Model(folder.name, network, evaluation_mode(module), 32))
    return folder


def toy_config(images, features=None, **changes):
    """The smoke config of RDCD for the toy student; `changes` by dotted names."""
    config = load_config(f"{CONFIGS / 'rdcd.py'}:smoke,dim=4,data={images}", [])
    config.student.network = "toy"
    config.evaluate.image_size = 32
    config.queue.size = config.bank.size = 24
    if features is not None:
        config.teacher.features = str(features)
    return changed(config, changes)


def changed(config, changes):
    """The config with fields set by their dotted names."""
    for name, value in changes.items():
        *parts, leaf = name.split(".")
        node = config
        for part in parts:
            node = node[part]
        assert leaf in node, name
        node[leaf] = value
    return config


def options(**values):
    """Options of the command line."""
    return [f"--{name}={value}" for name, value in values.items()]


def keys(name):
    """Shapes of a published network's tensors by their names."""
    with (DATA / f"keys_{name}.tsv").open() as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {row["key"]: tuple(map(int, row["shape"].split("x"))) for row in rows}


def metrics_of(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def embed(model, images):
    found, unreadable = embed_images(model, find_images(images), batch_size=8)
    assert not unreadable
    return found.descriptors


def relational_kl_of(config, workdir):
    train_and_evaluate(config, workdir)
    return [row["relational_kl"] for row in metrics_of(workdir)]
