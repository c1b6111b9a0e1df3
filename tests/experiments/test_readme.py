"""README and docs show what the result files say."""

import importlib.util
import json
import re
import shlex
import tomllib

import pytest

import rdcd_jax
from experiments.benchmarks import search_plot
from experiments.studies.readme import ROOT, filled, pages, tables
from rdcd_jax.cli.main import make_parser


def test_tables_are_those_of_the_result_files():
    made = tables()
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert filled(text, made) == text, "python -m experiments.studies.readme"
    for name in made:
        assert any(f"<!-- {name}: " in page.read_text(encoding="utf-8") for page in pages())
    assert filled("<!-- models: x -->\nold\n<!-- end of models -->", {"models": "new"}) == (
        "<!-- models: x -->\nnew\n<!-- end of models -->"
    )


def test_what_was_measured_of_searches_is_that_of_the_result_file():
    results = ROOT / "experiments" / "results"
    cells = json.loads((results / "bench_search.json").read_text(encoding="utf-8"))["cells"]
    assert (results / "bench_search.md").read_text(encoding="utf-8") == search_plot.table(cells)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.slow
def test_the_python_of_readme_prints_what_it_says(tmp_path, monkeypatch, capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code, printed = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", text, flags=re.S).groups()
    (tmp_path / "rdcd_jax").symlink_to(ROOT / "rdcd_jax")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == printed


def test_readme_is_short_enough_to_read():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 140 and len(readme.encode()) <= 9000


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {rdcd_jax.__version__}\n" in citation
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert changelog.startswith(f"# Changelog\n\n## {rdcd_jax.__version__}")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]


def commands(page):
    """The shell commands that a page shows, indented or between backticks, one line each."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    shown = re.findall(r"^ {4}((?:rdcd-jax|python -m) .*)$", text, flags=re.M)
    shown += re.findall(r"`((?:rdcd-jax|python -m) [^`]*)`", text.replace("\n", " "))
    return [re.sub(r"\s+#.*", "", command).strip() for command in shown]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_commands_are_understood(page, capsys):
    for command in commands(page):
        if "..." in command or "…" in command or "|" in command:
            continue
        program, *words = shlex.split(command)
        if program == "python":
            module = words[1]
            assert importlib.util.find_spec(module), f"{page.name}: {command}"
            continue
        if len(words) < 2 or words[0].isupper():
            # The name of a verb, in a sentence.
            continue
        try:
            _, rest = make_parser().parse_known_args(words)
        except SystemExit:
            # A sentence may name a command without all of its arguments.
            assert "are required: " in capsys.readouterr().err, f"{page.name}: {command}"
            continue
        assert all(word.startswith("--config.") for word in rest), f"{page.name}: {command}"
