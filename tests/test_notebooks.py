"""The notebooks: sound files whose outputs are of their code, and that run from top to bottom."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import pytest
from torch_support import import_torchvision

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
# Folders that only this machine has, and those that are somebody's own or do not last.
MACHINE = {str(ROOT), sys.prefix, str(pathlib.Path.home()), tempfile.gettempdir()} - {"/"}
OWN_FOLDER = re.compile(r"(?<![\w.:/])/(home|root|Users|tmp|opt|mnt|var|usr)/|[A-Z]:\\")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def sources(notebook):
    return [(cell["id"], cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


def outputs(notebook):
    return [each for cell in notebook["cells"] for each in cell.get("outputs", [])]


def kinds(notebook):
    """Which cells printed and which drew."""
    return [
        sorted({each["output_type"] for each in cell.get("outputs", [])})
        for cell in notebook["cells"]
    ]


def texts(notebook):
    """All that people read in it: sources, and outputs but for images."""
    yield from (source for _, _, source in sources(notebook))
    for each in outputs(notebook):
        yield "".join(each.get("text", []))
        for kind, data in each.get("data", {}).items():
            if not kind.startswith("image/"):
                yield "".join(data)


def test_there_are_notebooks():
    assert NAMES == ["distil", "find_copies", "jax_and_pytorch"]


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_sound(name):
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 300_000
    notebook = read(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    pytest.importorskip("nbformat").validate(notebook)
    assert not [each for each in outputs(notebook) if each["output_type"] == "error"]
    for text in texts(notebook):
        assert not OWN_FOLDER.search(text) and not any(each in text for each in MACHINE), text


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_of_the_code(name):
    pytest.importorskip("nbformat")
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    notebook = execute.nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    changed = f"its code was changed since: python docs/notebooks/execute.py {name}"
    assert notebook.metadata[execute.DIGEST] == execute.digest_of(notebook), changed
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs(name, tmp_path):
    for package in ("nbclient", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    if name == "jax_and_pytorch":
        pytest.importorskip("torch")
        import_torchvision()
    # In a process of its own: nbclient and zmq warn of their own affairs (local ports without encryption, sockets
    # closed late), which are errors here; and a reader's kernel has one CPU device.
    variables = {key: text for key, text in os.environ.items() if key != "XLA_FLAGS"}
    variables["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, FOLDER / "execute.py", name, "--out", tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=variables,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    stored, ran = read(FOLDER / f"{name}.ipynb"), read(tmp_path / f"{name}.ipynb")
    assert sources(ran) == sources(stored)
    assert kinds(ran) == kinds(stored)
    # Nothing is left where it ran.
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.ipynb"]
