"""The public interface: light to import, complete, typed, with examples that run; and the words that people read."""

import doctest
import importlib
import importlib.util
import pathlib
import re
import resource
import subprocess
import sys

import pytest

import rdcd_jax as rdcd
from rdcd_jax.cli.main import make_parser
from rdcd_jax.training.schema import OPTIONS

ROOT = pathlib.Path(__file__).parents[1]
# Words that docs/glossary.md has others for.
FORMER = re.compile(
    r"\b(describer|described|describes|numbers in its descriptor|is told|are told(?! apart))\b"
)


def test_importing_it_costs_nothing():
    code = "import sys, time; a = time.process_time(); import rdcd_jax; b = time.process_time();"
    code += (
        "print(b - a, [name for name in ('jax', 'flax', 'numpy', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seconds, loaded = done.stdout.split(" ", 1)
    assert loaded.strip() == "[]" and float(seconds) < 0.1


def test_every_name_is_there():
    assert sorted(rdcd.__all__) == sorted(set(rdcd.__all__)) == sorted(dir(rdcd))
    for name in rdcd.__all__:
        found = getattr(rdcd, name)
        assert found.__name__ == name or name == "knn"
        assert found.__doc__
    with pytest.raises(AttributeError, match="has no attribute 'load_modell'"):
        rdcd.load_modell  # noqa: B018


def examples():
    finder = doctest.DocTestFinder(recurse=True)
    found = {}
    for name in rdcd.__all__:
        thing = getattr(rdcd, name)
        # Of a class also what it inherits.
        things = [thing, *getattr(thing, "__mro__", ())[1:]]
        found[name] = [
            each
            for part in things
            if part.__module__.startswith("rdcd_jax")
            for each in finder.find(
                part, name, module=importlib.import_module(part.__module__), globs={}
            )
            if each.examples
        ]
    return found


EXAMPLES = examples()


@pytest.mark.parametrize(
    "name",
    [
        # It compiles a step of the whole network.
        pytest.param(name, marks=[pytest.mark.slow] if name == "train_and_evaluate" else [])
        for name in rdcd.__all__
        if name != "UserError"
    ],
)
def test_examples_run(name):
    assert EXAMPLES[name], f"{name} has no example"
    runner = doctest.DocTestRunner(verbose=False)
    for example in EXAMPLES[name]:
        result = runner.run(example, out=lambda text: print(text, end=""))
        assert not result.failed, example.name


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_public_names_are_typed(tmp_path):
    usage = tmp_path / "usage.py"
    usage.write_text(
        "import numpy as np\n"
        "import rdcd_jax as rdcd\n"
        'model = rdcd.load_model("rdcd-effb0-64")\n'
        'rows: np.ndarray = model.embed(["a.jpg"])\n'
        'index: rdcd.Index = rdcd.Index.build("x", "photos", model=model)\n'
        'for match in index.search("suspects"):\n'
        "    probability: float | None = match.probability\n"
        "    path: str = match.path\n"
        'for group in rdcd.find_duplicates("photos"):\n'
        "    paths: tuple[str, ...] = group.paths\n"
        "names: list[str] = rdcd.list_models()\n"
        'rdcd.evaluate_disc(model, "DISC", "out")\n'
        "scores: np.ndarray = rdcd.knn(rows, rows, 1).scores\n"
    )
    words = ["--follow-imports=silent", "--ignore-missing-imports", "--no-incremental"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words, str(usage)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_reference_page_is_the_schema_s():
    from rdcd_jax.training.schema import reference_page

    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == reference_page(), "python -m rdcd_jax.training.schema > docs/config.md"


def every_help(parser):
    yield parser.format_help()
    for action in parser._actions:
        if action.choices and hasattr(action, "add_parser"):
            for each in action.choices.values():
                yield from every_help(each)


def test_people_read_the_field_s_words():
    texts = list(every_help(make_parser())) + [known.help for known in OPTIONS.values()]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")]
    for text in texts:
        assert not (found := FORMER.search(text)), found


def test_models_are_listed_in_no_time():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "rdcd_jax", "models"], cwd=ROOT, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of a core's time, whatever else is running: half a second, where to import JAX alone takes one and a half.
    assert done.returncode == 0
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 1.2
    assert "efficientnet_b0" in done.stdout
