"""Every test runs on 8 fake CPU devices, with strict dtype and rank promotion and warnings as errors."""

import os
import pathlib
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# What one test compiled, the others and their processes need not compile again.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="rdcd-jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
# A test's programs run once or a few times: optimised code takes longer to compile than it saves.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

import jax
import numpy as np
import pytest
from toy import add_toys, make_export, make_features, make_images

from rdcd_jax.cli.main import main
from rdcd_jax.core.logs import show_warnings

show_warnings()
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def _memory():
    """Compiled programs of a module that is done are of no use to the next, and take gigabytes."""
    yield
    jax.clear_caches()


DATA = pathlib.Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def vectors():
    """Loads an npz of tests/data as a dict."""

    def load(name):
        with np.load(DATA / f"{name}.npz") as file:
            return dict(file)

    return load


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("data") / "train", 40)


@pytest.fixture(scope="session")
def features(images):
    return make_features(images.parent / "features.npz", images)


@pytest.fixture
def toys(monkeypatch):
    add_toys(monkeypatch)


@pytest.fixture
def student(monkeypatch, tmp_path):
    add_toys(monkeypatch)
    return make_export(tmp_path / "student", dim=8)


@pytest.fixture
def fails(capsys):
    """Runs arguments that must fail with 1 and one line on stderr after any progress; gives it."""

    def run(*arguments):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 1
        stored = capsys.readouterr()
        assert stored.out == ""
        *progress, sentence = stored.err.splitlines()
        assert sentence.startswith("rdcd-jax: ")
        assert all(line.endswith(" left") for line in progress), stored.err
        return sentence

    return run


@pytest.fixture
def usage_error(capsys):
    """Runs arguments that must exit with 2; gives what is reported on stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        assert left.value.code == 2
        return capsys.readouterr().err

    return run
