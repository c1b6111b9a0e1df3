"""Runs the notebooks beside this file from top to bottom, and keeps what they print and draw.

    python docs/notebooks/execute.py [NAME ...] [--out FOLDER]

Each runs by this interpreter in a temporary folder. NAME is a notebook without its suffix; all by default. What comes
out replaces the notebooks, or goes to FOLDER. Progress (what is written to stderr) is not kept. Needs nbclient and
ipykernel.
"""

import argparse
import hashlib
import json
import os
import pathlib
import sys
import tempfile

import nbformat

HERE = pathlib.Path(__file__).resolve().parent
KERNEL = "this-python"
# The key in a notebook's metadata of the digest of the code that its outputs are of.
DIGEST = "executed_code"


def digest_of(notebook: nbformat.NotebookNode) -> str:
    """A digest of a notebook's code."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()[:16]


def executed(notebook: nbformat.NotebookNode, *, timeout: int = 900) -> nbformat.NotebookNode:
    """Runs a notebook in a temporary folder, by this interpreter.

    Args:
        notebook: gets new outputs, in place.
        timeout: of a cell, in seconds.

    Returns:
        The notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        spec = root / "jupyter" / "kernels" / KERNEL / "kernel.json"
        spec.parent.mkdir(parents=True)
        spec.write_text(
            json.dumps(
                {
                    "argv": [
                        sys.executable,
                        *("-m", "ipykernel_launcher", "-f", "{connection_file}"),
                    ],
                    "display_name": KERNEL,
                    "language": "python",
                }
            )
        )
        # Nothing of the user's own is read or written; Jupyter reads these when it is imported.
        os.environ["JUPYTER_PATH"] = str(root / "jupyter")
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            os.environ[name] = str(root / name.lower())
        work = root / "work"
        work.mkdir()

        from nbclient import NotebookClient

        stored = notebook.metadata.kernelspec
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name=KERNEL,
            resources={"metadata": {"path": str(work)}},
            record_timing=False,
        )
        client.execute()
    # The reader's kernel has another name.
    notebook.metadata.kernelspec = stored
    notebook.metadata.language_info = {"name": "python"}
    notebook.metadata[DIGEST] = digest_of(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Runs the notebooks named on the command line."""
    known = sorted(path.stem for path in HERE.glob("*.ipynb"))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--out", type=pathlib.Path, default=HERE, help="folder for the results")
    options = parser.parse_args()
    for name in options.names or known:
        notebook = executed(nbformat.read(HERE / f"{name}.ipynb", as_version=4))
        nbformat.write(notebook, options.out / f"{name}.ipynb")


if __name__ == "__main__":
    main()
