"""The table of networks: sizes against the published ones."""

import json
import pathlib

import pytest

from rdcd_jax.cli.main import main
from rdcd_jax.models.registry import NETWORKS
from rdcd_jax.weights import catalogue

MEASURED = pathlib.Path(catalogue.__file__).with_name("networks.json")
# Millions of parameters, and multiply-adds in G at 224 pixels as torchvision, timm and the papers give them.
PUBLISHED = {
    "efficientnet_b0": (4.73, 0.39),
    "fastvit_t12": (7.12, 1.4 * (224 / 256) ** 2),
    "mobilenet_v3_large": (4.92, 0.22),
    "resnet50": (24.56, 4.09),
    "resnext101_32x4d": (44.23, 8.0),
    "vit_b16": (85.80, 17.56),
    "vit_b8": (85.81, 78.2),
}


def test_the_table(capsys):
    assert json.loads(json.dumps(catalogue.measure())) == json.loads(MEASURED.read_text())
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    rows = {row.name: row for row in catalogue.networks()}
    assert rows.keys() == PUBLISHED.keys() == NETWORKS.keys()
    for name, (millions, giga) in PUBLISHED.items():
        row = rows[name]
        assert row.parameters / 1e6 == pytest.approx(millions, abs=0.006)
        assert row.multiply_adds / 1e9 == pytest.approx(giga, rel=0.02)
        assert row.descriptor_bytes == 4 * row.dim
        assert f"{row.multiply_adds / 1e9:.2f} G" in printed
    assert (rows["vit_b8"].dim, rows["vit_b8"].kinds[:2]) == (1536, ("timm", "dino"))
    assert "rdcd-effb0-128" in rows["efficientnet_b0"].shipped
    assert "sscd-classy" in printed and "teacher" in printed
