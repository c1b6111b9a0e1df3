"""Experiments run for hours and seldom: what they read of their command line is there."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "experiments").rglob("*.py"))


def _arguments(tree: ast.AST) -> set[str]:
    """The names that the calls of `add_argument`, and of `add_subparsers`, give options."""
    found = set()
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", "")
        if name not in ("add_argument", "add_subparsers"):
            continue
        texts = [each.value for each in call.args if isinstance(each, ast.Constant)]
        texts += [each.value.value for each in call.keywords if each.arg == "dest"]
        found |= {text.lstrip("-").replace("-", "_") for text in texts}
    return found


def _options(tree: ast.AST) -> set[str]:
    """The attributes that are read of `options`."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {
        node.attr
        for node in nodes
        if isinstance(node.value, ast.Name) and node.value.id == "options"
    }


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_options_are_arguments(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    arguments = _arguments(tree)
    if arguments and "parse_args" in ast.dump(tree):
        assert _options(tree) <= arguments
