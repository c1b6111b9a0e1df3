"""The package's imports keep to the lines that the architecture draws."""

import ast
import pathlib
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "rdcd_jax"
# In each entry's imports only the entries before it may occur, at import time, directly or not.
LAYERS = (
    ("rdcd_jax.losses", "rdcd_jax.memory", "rdcd_jax.models"),
    ("rdcd_jax.weights",),
    ("rdcd_jax.train.state", "rdcd_jax.train.optim", "rdcd_jax.train.step"),
    ("rdcd_jax.train.loop",),
    (
        "rdcd_jax.cli",
        "rdcd_jax.cli_data",
        "rdcd_jax.cli_evaluate",
        "rdcd_jax.cli_parts",
        "rdcd_jax.cli_report",
    ),
)
NUMPY_ONLY = ("metrics", "score_norm", "whiten")


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path, *, everywhere):
    """Names of the modules that a file imports: at import time, or anywhere in it."""
    found = set()
    waiting = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from package import name` imports the module package.name where there is one.
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif everywhere or not isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        ):
            waiting += ast.iter_child_nodes(node)
    return found


AT_IMPORT = {name: imported(path, everywhere=False) for name, path in FILES.items()}
ANYWHERE = {name: imported(path, everywhere=True) for name, path in FILES.items()}


def closure(name):
    """Everything that importing a module of the package imports, foreign names included."""
    seen, waiting = set(), [name]
    while waiting:
        each = waiting.pop()
        if each in seen:
            continue
        seen.add(each)
        waiting += AT_IMPORT.get(each, ())
        # Importing a.b.c imports a and a.b first.
        if each.partition(".")[0] == "rdcd_jax" and "." in each:
            waiting.append(each.rpartition(".")[0])
    return seen


def tops(names):
    return {name.partition(".")[0] for name in names}


def below(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_the_walk_sees_the_package():
    assert {"rdcd_jax", "rdcd_jax.cli", "rdcd_jax.train.loop", "rdcd_jax.data"} <= FILES.keys()
    assert "jax" in tops(closure("rdcd_jax.train.loop"))
    assert "rdcd_jax.losses" in closure("rdcd_jax.train.loop")


@pytest.mark.parametrize("name", FILES)
def test_nothing_foreign_at_import_time(name):
    banned = {"torch", "torchvision", "tensorflow", "configs", "experiments", "tests"}
    assert not banned & tops(AT_IMPORT[name])


def test_torch_and_tensorflow_are_imported_nowhere():
    for name, names in ANYWHERE.items():
        assert not {"torch", "torchvision", "tensorflow"} & tops(names), name


def test_every_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {module_name(path) for path in PACKAGE.rglob("__init__.py")}
    assert packages == {*settings["tool"]["setuptools"]["packages"]} - {"rdcd_jax.configs"}


def test_only_checkpoints_imports_orbax():
    assert [name for name, names in ANYWHERE.items() if "orbax" in tops(names)] == [
        "rdcd_jax.train.checkpoints"
    ]


@pytest.mark.parametrize(
    "name",
    [name for name in FILES if below(name, ["rdcd_jax.data"])]
    + [f"rdcd_jax.evaluation.{name}" for name in NUMPY_ONLY],
)
def test_numpy_only_parts_name_no_jax(name):
    assert not {"jax", "jaxlib", "flax", "optax"} & tops(closure(name))
    assert not {"jax", "jaxlib", "flax", "optax"} & tops(ANYWHERE[name])


def test_numpy_only_parts_load_no_jax():
    modules = [f"rdcd_jax.evaluation.{name}" for name in NUMPY_ONLY]
    modules += ["rdcd_jax.data.decode", "rdcd_jax.data.policies", "rdcd_jax.data.sources"]
    lines = [f"import {name}" for name in modules]
    lines.append("import sys; print([m for m in ('jax', 'flax', 'torch') if m in sys.modules])")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_layers_import_one_way():
    for i, modules in enumerate(LAYERS):
        above = [module for layer in LAYERS[i + 1 :] for module in layer]
        for name in FILES:
            if below(name, modules):
                wrong = sorted(each for each in closure(name) if below(each, above))
                assert not wrong, f"{name} imports {wrong}"


def test_the_command_line_loads_its_verbs_late():
    """`rdcd-jax --help` must not wait for jax."""
    assert not {"jax", "flax", "rich", "grain"} & tops(closure("rdcd_jax.cli"))
