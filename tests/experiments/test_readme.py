"""README and docs show what the result files say."""

import re
import tomllib

import pytest

import rdcd_jax
from experiments.studies.readme import ROOT, filled, pages, tables


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


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


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
