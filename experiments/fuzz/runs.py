"""Config arguments, overrides, config files and damaged workdirs for `train`."""

import json
import os
import pathlib

import numpy as np

from experiments.fuzz.damage import NUMBERS, TEXTS, Case, Place, chosen, damaged, hostile_json
from experiments.fuzz.seeds import SIZE

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def train_case(position: Place, random: np.random.Generator) -> Case:
    """A `train` that must be refused, or at most do one small step."""
    return chosen(random, [_override] * 5 + [_argument, _argument, _config_file, _source])(
        position, random
    )


def workdir_case(position: Place, random: np.random.Generator) -> Case:
    """A `train` into a workdir whose files are damaged."""
    run = position.out / "run"
    run.mkdir(parents=True)
    (run / "teacher_features.npz").write_bytes((position.seeds / "t.npz").read_bytes())
    name = chosen(
        random, ("run.json", "run.json", "run.json", "metrics.jsonl", "teacher_features.npz")
    )
    path = run / name
    record = {"config": {"seed": 0, "batch_size": 8}, "starts": []}
    row = {"step": 1, "loss": 2.0}
    good = {"run.json": json.dumps(record, indent=2), "metrics.jsonl": f"{json.dumps(row)}\n" * 3}
    way, what = int(random.integers(4)), ""
    if way == 0:
        kind = chosen(random, ("folder", "loop", "fifo", "empty"))
        path.unlink(missing_ok=True)
        what = kind
        if kind == "folder":
            path.mkdir()
        elif kind == "loop":
            path.symlink_to(path.name)
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.write_bytes(b"")
    elif way == 1 or name == "teacher_features.npz":
        data = good[name].encode() if name in good else path.read_bytes()
        data, what = damaged(data, random)
        path.write_bytes(data)
    elif name == "run.json":
        field, text = chosen(random, ("config", "starts", "both", "seed")), hostile_json(random)
        fields = {key: json.dumps(value) for key, value in record.items()}
        fields[field] = text
        if field == "seed":
            fields["config"] = f'{{"seed": {text}}}'
        whole = "{" + ", ".join(f'"{key}": {value}' for key, value in fields.items()) + "}"
        path.write_text(text if field == "both" else whole)
        what = f"{field}: {text[:60]}"
    else:
        line = chosen(random, [hostile_json(random), f'{{"step": {hostile_json(random)}}}'])
        path.write_bytes(
            good[name].encode() + line.encode() + chosen(random, (b"\n", b"\xff\n", b""))
        )
        what = f"a line {line[:60]}"
    argv = _train(position, [f"--config.teacher.model={position.seeds / 'export'}"], run)
    return Case(argv, f"{name}: {what}", (str(path), str(run)))


def _train(position, more, run=None, argument="", config=None) -> list[str]:
    config = config or CONFIGS / "rdcd.py"
    options = f"smoke,student=tiny,dim=4,data={position.seeds / 'training'}{argument}"
    fixed = {
        "teacher.features": "cached" if run else position.seeds / "t.npz",
        "schedule.max_steps": 1,
        "evaluate.image_size": SIZE,
        "queue.size": 8,
        "bank.size": 8,
        "data.workers": 0,
    }
    words = [f"--config.{name}={value}" for name, value in fixed.items()]
    return [
        "train",
        f"--config={config}:{options}",
        f"--workdir={run or position.out}",
        *words,
        *more,
    ]


def _override(position, random):
    numbers = [str(n) for n in NUMBERS[:-1]] + [
        "9" * 5000,
        "nan",
        "inf",
        "-inf",
        "1e400",
        "1.5",
        "0x7",
    ]
    values = [
        *numbers,
        *numbers,
        *(text.replace("\x00", "") for text in TEXTS),
        "[1]",
        "(1,2)",
        "{}",
    ]
    value = chosen(random, values)
    name = chosen(random, FIELDS)
    what = f"--config.{name}={value[:60]}"
    return Case(_train(position, [f"--config.{name}={value}"]), what, _named(name, value))


# Fields that are read, and names that are none.
FIELDS = (
    *("seed", "image_size", "batch_size", "devices", "data.train", "data.policy", "init_from"),
    *("student.network", "student.dim", "student.dtype", "student.dropout", "student.projector"),
    *("teacher.model", "teacher.bn", "teacher.features", "queue.size", "bank.size"),
    *("objective.moco_lambda", "objective.temperature", "objective.key_momentum"),
    *("objective.kld_temperature", "optimizer.name", "optimizer.learning_rate"),
    *("optimizer.weight_decay", "optimizer.momentum", "schedule.epochs", "schedule.warmup_epochs"),
    *("log_every", "keep_checkpoints", "evals.disc.data", "evals.disc.codecs", "evaluate.every"),
    *("", "no.such", "seed.more", "student", "__class__", "optimizer..name", "items"),
)


def _named(name, value):
    last = name.rpartition(".")[2]
    return tuple(filter(None, (name, last, value[:20].strip(), "config", "codec")))


def _argument(position, random):
    value = chosen(random, [text.replace("\x00", "") for text in TEXTS])
    arguments = (
        "{}",
        "dim={}",
        "student={}",
        "teacher={}",
        "data={}",
        "smoke={}",
        "{}=1",
        "dim={},dim=3",
    )
    argument = "," + chosen(random, arguments).format(value)
    return Case(
        _train(position, [], argument=argument),
        f"argument {argument[:60]!r}",
        ("config", "no such folder", "no network", "no model", "pictures"),
    )


def _config_file(position, random):
    texts = {
        "empty": "",
        "no function": "x = 1\n",
        "syntax": "def get_config(arg):\n  return (\n",
        "null": "x = '\x00'\n",
        "bytes": "\udcff\udcfe",
        "raises": "def get_config(arg):\n  raise ValueError\n",
        "raises lines": "def get_config(arg):\n  raise KeyError('two\\nlines: of\\ntext')\n",
        "recursion": "def get_config(arg):\n  return get_config(arg)\n",
        "assertion": "def get_config(arg):\n  assert arg is None\n",
        "number": "def get_config(arg):\n  return 7\n",
        "dict": "def get_config(arg):\n  return {'seed': 0}\n",
        "no fields": "import ml_collections\ndef get_config(arg):\n  return ml_collections.ConfigDict()\n",
        "import": "import no_such_module\n",
        "no argument": "def get_config():\n  return None\n",
        "damaged": damaged((CONFIGS / "rdcd.py").read_bytes(), random)[0].decode(
            errors="surrogateescape"
        ),
    }
    what, text = chosen(random, texts)
    path = position.written("odd.py", text.encode(errors="surrogateescape"))
    return Case(_train(position, [], config=path), f"config file: {what}", (str(path), "config"))


def _source(position, random):
    path = position.written("list.txt", "")
    kind = chosen(
        random, ("empty", "noise", "missing", "itself", "long", "null", "fifo", "device", "names")
    )
    good = str(position.seeds / "training" / "T00000.jpg")
    texts = {
        "noise": random.bytes(500),
        "missing": b"no.jpg\n",
        "itself": b"list.txt\n" * 20,
        "long": b"x" * 10_000 + b"\n",
        "null": b"a\x00b.jpg\n",
        "names": f"{good}\n\x1b[31m\n{good}\n".encode(),
    }
    if kind in ("fifo", "device"):
        path.unlink()
        os.mkfifo(path) if kind == "fifo" else path.symlink_to("/dev/zero")
    else:
        path.write_bytes(texts.get(kind, b""))
    argv = _train(position, [f"--config.data.train={path}"])
    return Case(argv, f"list of images: {kind}", (str(path), "Two images"))
