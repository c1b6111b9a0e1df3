"""A few dozen cases of `experiments.fuzz`, in a process of their own: it must fork before JAX starts."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def python(*arguments):
    variables = {name: text for name, text in os.environ.items() if name != "XLA_FLAGS"}
    variables["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=variables)


def test_hostile_input_is_borne(tmp_path):
    result = tmp_path / "result.json"
    done = python(
        "-m", "experiments.fuzz", tmp_path / "out", "--cases=50", "--seed=1", f"--result={result}"
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    stored = json.loads(result.read_text())
    assert stored["cases"] == 50 and not stored["faulty_cases"]
    assert stored["outcomes"].keys() >= {"picture", "torch", "onnx", "csv", "descriptors", "train"}
    assert stored["outcomes"]["picture"]["listed as unreadable"] > 5
    lines = (tmp_path / "out" / "cases.jsonl").read_text().splitlines()
    assert [json.loads(line)["case"] for line in lines] == list(range(50))


# What the fuzzer must notice: in place of the command line, one that misbehaves.
CONTROL = """
import sys, time, traceback, pathlib
from experiments.fuzz import __main__ as fuzz, server

def misbehaving(argv):
    what = next(misdeeds)
    if what == "traceback":
        raise RuntimeError
    if what == "hang":
        time.sleep(600)
    if what == "memory":
        bytearray(b"x") * 600 * 2**20
    if what == "marker":
        pathlib.Path("../MARKER").touch()
    if what == "neighbour":
        pathlib.Path("../../evil").touch()
    if what == "silence":
        return 1
    if what == "lines":
        print("rdcd-jax: two\\nlines of truth.csv good.csv.", file=sys.stderr)
        return 1
    if what == "vague":
        print("rdcd-jax: it failed.", file=sys.stderr)
        return 1
    return 0

names = ["traceback", "hang", "memory", "marker", "neighbour", "silence", "lines", "vague", "none"]
number = fuzz.PLAN.index("csv")
fuzzer = fuzz.Fuzzer(pathlib.Path(sys.argv[1]), 0)
once, again = (fuzzer.rows([number])[0] for _ in range(2))
print("repeated", once["injected"] == again["injected"] and not once["faults"])
server.PEAK_MIB, server.main = 500, misbehaving
for name in names:
    # Only what hangs is to run out of time: on a busy machine 600 MiB alone may take seconds.
    server.SECONDS = 2 if name == "hang" else 60
    misdeeds = iter([name])
    print(name, fuzzer.rows([number])[0]["faults"])
"""


def test_the_fuzzer_notices(tmp_path):
    done = python("-c", CONTROL, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert found.pop("none") == "[]" and found.pop("repeated") == "True"
    for name, words in {
        "traceback": "a traceback",
        "hang": "still running after 2 s",
        "memory": "MiB of memory",
        "marker": "MARKER",
        "neighbour": "evil",
        "silence": "not one sentence",
        "lines": "not one sentence",
        "vague": "names none of",
    }.items():
        assert words in found[name], (name, found[name])
