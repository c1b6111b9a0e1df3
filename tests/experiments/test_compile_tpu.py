"""A toy's step as XLA compiles it for TPUs and lowers it for GPUs that are not here."""

import importlib.util

import numpy as np
import pytest
from toy import add_toys, make_export, toy_config

from experiments.benchmarks.compile_tpu import compiled_step
from experiments.benchmarks.program_text import collectives, memory_bytes
from experiments.benchmarks.projection import Chip, step_ms, step_of
from experiments.benchmarks.tpu import described_devices
from rdcd_jax.core.mesh import make_mesh
from rdcd_jax.training.setup import optimization
from rdcd_jax.training.student import make_student
from rdcd_jax.training.teacher import live_teacher
from rdcd_jax.training.tracing import trace_step
from rdcd_jax.weights.library import load_model

BATCH, QUEUE = 32, 4096


@pytest.fixture
def parts(monkeypatch, tmp_path):
    """A config of a long queue and bank, its student and its teacher."""
    add_toys(monkeypatch)
    teacher = load_model(str(make_export(tmp_path / "teacher", network="other_toy")))
    changes = {"batch_size": BATCH, "queue.size": QUEUE, "bank.size": QUEUE, "devices": 8}
    config = toy_config(tmp_path, **changes)
    teacher = live_teacher(teacher, "running", ())
    return config, make_student(config, teacher.feature_dim).module, teacher


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_step_for_a_tpu_slice(parts):
    config, student, teacher = parts
    devices = described_devices("v5e:2x4")
    found, _ = compiled_step(config, student, teacher, "v5e:2x4", devices)
    assert found["chips"] == 8
    # Gradients, batch statistics and gathered rows; nothing as long as queue or bank goes between chips.
    assert found["collective_bytes"] < 4 * QUEUE * teacher.feature_dim / 8
    assert found["collective_count"] <= 16
    # Queue and bank are changed in place: beside them there is room for no other copy.
    memory = 4 * QUEUE * (teacher.feature_dim + config.student.dim)
    assert found["argument_bytes"] > memory
    assert found["memory_bytes"] < found["bytes_moved"]


def test_a_step_lowers_for_cuda(parts):
    config, student, teacher = parts
    _, _, optimizer = optimization(config, 1000)
    traced = trace_step(config, student, teacher, optimizer, make_mesh(8))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "mhlo.num_partitions = 8" in text
    assert "stablehlo.convolution" in text


def test_collectives_are_counted_once():
    text = """
  %a = f32[8,4]{1,0} all-reduce(%x), channel_id=1, to_apply=%add
  %b = (f32[8,4]{1,0}, f32[32,4]{1,0}) all-gather-start(%x), channel_id=2
  %c = f32[32,4]{1,0} all-gather-done(%b)
  %d = f32[8,4]{1,0} all-reduce(%y), channel_id=1, to_apply=%add
  %e = (f32[2]{0}, bf16[6]{0}) all-reduce(%p, %q), channel_id=3, to_apply=%add
"""
    sizes = np.array([8 * 4 * 4, 32 * 4 * 4, 2 * 4 + 6 * 2])
    assert collectives(text) == {"collective_count": 3, "collective_bytes": sizes.sum()}


def test_bytes_of_the_main_memory_are_counted():
    text = """HloModule
ENTRY %main {
  %p = f32[64,8]{1,0:T(8,128)} parameter(0)
  %q = f32[8,8]{1,0:T(8,128)S(1)} parameter(1)
  %a = f32[8,8]{1,0:T(8,128)} fusion(%p, %q), kind=kLoop, calls=%f
  %b = (f32[8,8]{1,0:T(8,128)S(1)}, f32[8,8]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %c = f32[8,8]{1,0:T(8,128)S(1)} copy-done(%b)
  %d = ((f32[64,8]{1,0:T(8,128)}), f32[16,8]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:16]}
  %e = f32[64,8]{1,0:T(8,128)} dynamic-update-slice(%p, %a, %i)
  ROOT %t = (f32[64,8]{1,0:T(8,128)}) tuple(%e)
}"""
    # The fusion reads 64 rows and writes 8, 8 are copied and 16 cut out, and 8 are put in.
    assert memory_bytes(text) == 4 * 8 * ((64 + 8) + 8 + 16 + 2 * 8)


def test_a_projection_adds_what_chips_send():
    chip = Chip(flops=1e12, memory=1e9, link=1e8, near=4, far=1e7)
    rows = {
        "v5e-4": {"chips": 4, "images_per_chip": 100, "flop": 1e9, "memory_bytes": 200e6},
        "v5e-256": {"chips": 10, "images_per_chip": 50, "flop": 5e8, "memory_bytes": 100e6},
    }
    rows["v5e-4"]["collective_bytes"] = 1e6 + 400 * 1e3
    rows["v5e-256"]["collective_bytes"] = 1e6 + 500 * 1e3
    step = step_of(rows)
    # Memory: 2 MB an image at 1 GB/s; arithmetic takes less.
    assert step_ms(step, chip, 1, 50) == pytest.approx(100)
    # Each of four chips sends three quarters of 2 MB that are reduced and of 0.2 MB that are gathered.
    assert step_ms(step, chip, 4, 200) == pytest.approx(100 + 1e3 * 0.75 * 2.2e6 / 1e8)
    # Two groups of four send half of 2.4 MB to each other over four links, too.
    expected = 100 + 1e3 * (0.75 * 2.4e6 / 1e8 + 0.5 * 2.4e6 / 4e7)
    assert step_ms(step, chip, 8, 400) == pytest.approx(expected)
