"""The package's imports keep to the lines that the architecture draws."""

import ast
import pathlib
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "rdcd_jax"
# The rooms from the ground up: in each one's imports only itself and those before it occur, wherever the import stands.
ROOMS = (
    "core",
    "images",
    "models",
    "method",
    "augment",
    "search",
    "embedding",
    "weights",
    "benchmarks",
    "report",
    "index",
    "training",
    "demo",
    "cli",
)
# What data workers load, and what people load who have no accelerator: without JAX.
NUMPY_ONLY = (
    "rdcd_jax.images",
    "rdcd_jax.augment.policies",
    "rdcd_jax.augment.host",
    "rdcd_jax.augment.preview",
    "rdcd_jax.training.pipeline",
    "rdcd_jax.training.kept",
    "rdcd_jax.benchmarks.metrics",
    "rdcd_jax.embedding.whitening",
    "rdcd_jax.search.score_norm",
    "rdcd_jax.search.calibration",
)


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
        elif isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            # For those who read types; nothing of it runs.
            continue
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


def room_of(name):
    return name.split(".")[1] if "." in name else ""


def test_the_walk_sees_the_package():
    assert {"rdcd_jax", "rdcd_jax.cli.main", "rdcd_jax.training.loop"} <= FILES.keys()
    assert "jax" in tops(closure("rdcd_jax.training.loop"))
    assert "rdcd_jax.method.losses" in closure("rdcd_jax.training.loop")
    assert {room_of(name) for name in FILES} == {*ROOMS, "", "__main__"}


@pytest.mark.parametrize("name", [name for name in FILES if room_of(name) in ROOMS])
def test_rooms_import_downwards(name):
    allowed = ROOMS[: ROOMS.index(room_of(name)) + 1]
    wrong = [
        each
        for each in ANYWHERE[name]
        if each.startswith("rdcd_jax.") and each in FILES and room_of(each) not in allowed
    ]
    # The version, which __init__ holds, is everyone's.
    assert not wrong


def test_no_module_imports_itself_in_a_circle():
    """Nor within a room; what a package's face offers lazily is no import."""
    faces = {name for name, path in FILES.items() if path.name == "__init__.py"}
    graph = {
        name: {each for each in names if each in FILES and each not in faces}
        for name, names in ANYWHERE.items()
        if name not in faces
    }
    while leaves := {name for name, names in graph.items() if not names & graph.keys()}:
        graph = {name: names for name, names in graph.items() if name not in leaves}
    assert not graph


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
    # And whoever waits for other processes, by its barrier alone.
    assert [name for name, names in ANYWHERE.items() if "orbax" in tops(names)] == [
        "rdcd_jax.core.hosts",
        "rdcd_jax.training.checkpoints",
    ]


@pytest.mark.parametrize("name", [name for name in FILES if below(name, NUMPY_ONLY)])
def test_numpy_only_parts_name_no_jax(name):
    assert not {"jax", "jaxlib", "flax", "optax"} & tops(closure(name))
    assert not {"jax", "jaxlib", "flax", "optax"} & tops(ANYWHERE[name])


def test_numpy_only_parts_load_no_jax():
    # Grain, which the others need, loads JAX by itself.
    lines = [f"import {name}" for name in NUMPY_ONLY if not below(name, ["rdcd_jax.training"])]
    lines.append("import sys; print([m for m in ('jax', 'flax', 'torch') if m in sys.modules])")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_the_command_line_loads_its_verbs_late():
    """`rdcd-jax --help` must not wait for jax."""
    assert not {"jax", "flax", "rich", "grain"} & tops(closure("rdcd_jax.cli"))


def defined(path):
    """Names that a module gives to anything."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


@pytest.mark.parametrize("folder", ["rdcd_jax", "experiments", "configs"])
def test_what_is_imported_from_a_module_is_there(folder):
    # Also where the import needs what is not installed here, such as torch.
    lost = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                source = ROOT / f"{node.module.replace('.', '/')}.py"
                if source.exists():
                    missing = {alias.name for alias in node.names} - defined(source)
                    lost += [f"{path.relative_to(ROOT)}: {node.module}.{name}" for name in missing]
    assert not lost
