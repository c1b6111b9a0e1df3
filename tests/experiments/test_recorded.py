import json

from experiments.studies.recorded import record


def measured(*models, benchmark="minidisc", host="a"):
    figures = {name: {"found": 1.0} for name in models}
    return {"benchmark": benchmark, "models": figures, "environment": {"host": host}}


def test_a_start_that_measures_less_leaves_what_is_recorded(tmp_path, capsys):
    path, part = tmp_path / "engines.json", tmp_path / "engines-part.json"
    whole, anew = measured("one", "two"), measured("one", "two", "three", host="b")
    assert record(path, whole) == path and record(path, anew) == path
    assert json.loads(path.read_text()) == anew
    for less, lost in (
        (measured("one", "two"), "models/three/found"),
        (measured("one", "two", "three", benchmark="sample"), "benchmark/minidisc"),
    ):
        capsys.readouterr()
        assert record(path, less) == part
        assert f"engines.json has figures that were not measured now ({lost})" in (
            capsys.readouterr().out
        )
        assert json.loads(part.read_text()) == less
        assert json.loads(path.read_text()) == anew
