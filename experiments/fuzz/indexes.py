"""Mutated indexes, and hostile images through the verbs that index, search and group them."""

import json
import shutil

import numpy as np

from experiments.fuzz.damage import Case, Place, chosen, damaged, hostile_json, short
from experiments.fuzz.images import add_image
from experiments.fuzz.seeds import INDEXES

# Images of a command line of `verbs_case`.
_IMAGES = 6


def index_case(position: Place, random: np.random.Generator) -> Case:
    """An index that is damaged, through a verb that reads or changes it."""
    folder = position.out
    shutil.copytree(position.seeds / chosen(random, list(INDEXES)), folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path = chosen(random, files)
    way = int(random.integers(5))
    if way < 2:
        data, what = damaged(path.read_bytes(), random)
        path.write_bytes(data)
    elif way == 2:
        path.unlink()
        what = "gone"
    else:
        path = chosen(random, [folder / "index.json", *folder.glob("segments/*.ids.json")])
        what = _odd_field(path, random)
    query = position.seeds / "pictures" / "plain.jpg"
    verbs = {
        "search": ["search", f"--index={folder}", str(query)],
        "page": ["search", f"--index={folder}", str(query), f"--out={position.out}.html"],
        "info": ["index", "info", str(folder)],
        "add": ["index", "add", str(folder), str(query)],
        "dry": ["index", "update", str(folder), "--dry-run"],
        "update": ["index", "update", str(folder)],
        "remove": ["index", "remove", str(folder), "T00003"],
        "export": ["index", "export", str(folder), "--format=npz", f"--out={position.out}.npz"],
        "duplicates": ["duplicates", f"--index={folder}", "--threshold=0.9"],
    }
    name, argv = chosen(random, verbs)
    about = f"{name}: {path.relative_to(folder)} {what}"
    return Case(argv, about, (str(folder), str(position.seeds / "training")))


def _odd_field(path, random) -> str:
    """Gives a JSON file's field, or one of its values, something that it did not expect."""
    text = hostile_json(random)
    stored = json.loads(path.read_text())
    name = chosen(random, list(stored))
    if isinstance(stored[name], list) and stored[name] and random.random() < 0.6:
        stored[name][int(random.integers(len(stored[name])))] = "HOSTILE"
    else:
        stored[name] = "HOSTILE"
    path.write_text(json.dumps(stored).replace('"HOSTILE"', text))
    return f"{name} is {short(text)}"


def verbs_case(position: Place, random: np.random.Generator) -> Case:
    """Some hostile images, and two good ones, through a verb."""
    added = [add_image(position, number, random)[1] for number in range(_IMAGES)]
    for name in ("plain", "palette"):
        suffix = ".jpg" if name == "plain" else ".png"
        content = (position.seeds / "pictures" / f"{name}{suffix}").read_bytes()
        position.written(f"good-{name}{suffix}", content)
    source, model = str(position.inside), f"--model={position.seeds / 'export'}"
    index = position.seeds / "index"
    verbs = {
        "build": ["index", "build", source, model, f"--out={position.out}"],
        "search": ["search", f"--index={index}", source, f"--out={position.out}.html"],
        "duplicates": [
            *("duplicates", source, model, "--threshold=0.99"),
            *(f"--out={position.out}.html", f"--script={position.out}.sh"),
        ],
        "check": ["data", "check", source, "--workers=1", f"--out={position.out}.json"],
        "pack": ["data", "pack", source, str(position.out), "--workers=1"],
    }
    name, argv = chosen(random, verbs)
    return Case(argv, f"{name}: {'; '.join(added)}", (source,))
