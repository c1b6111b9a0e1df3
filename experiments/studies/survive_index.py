"""Kills `index build`, `index add`, `index update` and `embed` again and again, and compares what they come to.

    python -m experiments.studies.survive_index OUT [--kills 20] [--seed 0]

Each verb runs on 200 bundled images at 64 pixels, 16 at a time, and is killed (SIGKILL) at a random moment of its run,
then started again by the same command, until it was killed so often; then it may end. After each kill the index must
open, and every descriptor in it be that of an undisturbed run; what was in it must stay. In the end nothing may lack
or differ, and no temporary file lie there. Written to experiments/results/survive_index.json.
"""

import argparse
import pathlib
import random
import shutil
import subprocess
import sys
import time

import numpy as np

from rdcd_jax.core.files import write_json
from rdcd_jax.embedding.descriptors import read_descriptors
from rdcd_jax.images.sources import find_images
from rdcd_jax.index import Index
from rdcd_jax.training.record import environment

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULT = ROOT / "experiments" / "results" / "survive_index.json"
IMAGES, CHUNK = 200, 16
# The command line, with smaller pieces.
CHILD = f"""
import sys
from rdcd_jax.embedding import parts
from rdcd_jax.index import store, writing
writing.CHUNK, parts.ROWS, store.FULL = {CHUNK}, {CHUNK}, 48
from rdcd_jax.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Job:
    """One verb.

    Args:
        name: of the verb.
        folder: made anew; `prepare` fills it.
    """

    def __init__(self, name: str, folder: pathlib.Path):
        self.name, self.folder = name, folder
        self.images, self.index = folder / "images", folder / "x"
        shutil.rmtree(folder, ignore_errors=True)
        self.images.mkdir(parents=True)
        paths = find_images("sample:references").paths[:IMAGES]
        first = paths[: IMAGES // 4] if name in ("add", "update") else paths
        for path in first:
            shutil.copy(path, self.images)
        if name in ("add", "update"):
            self._run(self._build())
            for path in paths[IMAGES // 4 :]:
                shutil.copy(path, self.images)
        if name == "update":
            # Some are replaced by others, and some are gone.
            for number in range(10):
                shutil.copy(paths[-1 - number], self.images / pathlib.Path(paths[number]).name)
                (self.images / pathlib.Path(paths[20 + number]).name).unlink()

    def _build(self) -> list[str]:
        model = ["--model=rdcd-effb0-64", "--image-size=64"]
        return ["index", "build", str(self.images), *model, f"--out={self.index}"]

    def command(self) -> list[str]:
        """The verb's words."""
        return {
            "build": self._build(),
            "add": ["index", "add", str(self.index), str(self.images)],
            "update": ["index", "update", str(self.index)],
            "embed": [
                *("embed", str(self.images), "--model=rdcd-effb0-64", "--image-size=64"),
                f"--out={self.folder / 'd.npz'}",
            ],
        }[self.name]

    def start(
        self, words: list[str] | None = None, errors: int = subprocess.DEVNULL
    ) -> subprocess.Popen:
        """Starts it; `errors` is where its stderr goes."""
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, *(words or self.command())],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
            cwd=ROOT,
        )

    def _run(self, words: list[str]) -> None:
        if self.start(words).wait():
            raise SystemExit(f"{' '.join(words)} failed.")

    def finish(self) -> float:
        """Runs it to its end; the seconds."""
        begun = time.monotonic()
        self._run(self.command())
        return time.monotonic() - begun

    def rows(self) -> dict[str, bytes]:
        """Descriptors by the images' names; of an index that is not there none."""
        if self.name == "embed":
            path = self.folder / "d.npz"
            if not path.exists():
                return {}
            found = read_descriptors(path)
            return dict(
                zip(found.ids.tolist(), map(bytes, np.round(found.descriptors, 4)), strict=True)
            )
        if not (self.index / "index.json").exists():
            return {}
        found = Index.open(self.index).contents()
        return dict(zip(found.ids, map(bytes, np.round(found.rows, 4)), strict=True))

    def leftovers(self) -> list[str]:
        """Temporary files."""
        names = (path.name for path in self.folder.rglob("*"))
        return sorted(name for name in names if name[0] == "." or name.endswith(".parts"))


def killed(name: str, out: pathlib.Path, kills: int, choose: random.Random) -> dict:
    """Kills a verb so often, then lets it end; what differed."""
    whole = Job(name, out / f"{name}-whole")
    seconds = whole.finish()
    expected, job = whole.rows(), Job(name, out / f"{name}-killed")
    faults, done, before = [], 0, len(job.rows())
    for _ in range(10 * kills):
        process = job.start()
        time.sleep(choose.uniform(0.2, 1.0) * seconds)
        done += process.poll() is None
        process.kill()
        process.wait()
        found = job.rows()
        faults += [f"{key} differs" for key in found if _wrong(name, found, expected, key)]
        if name != "update" and len(found) < before:
            faults.append(f"{before - len(found)} were lost")
        before = len(found)
        if done == kills:
            break
        if found == expected:
            job = Job(name, out / f"{name}-killed")
            before = len(job.rows())
    job.finish()
    found = job.rows()
    faults += [] if found == expected else ["the end differs"]
    return {"kills": done, "faults": faults, "left": job.leftovers(), "images": len(found)}


def _wrong(name: str, found: dict, expected: dict, key: str) -> bool:
    """Whether a descriptor is another's; before its end an update has old ones."""
    return name != "update" and expected.get(key) != found[key]


def main() -> int:
    """Kills all, and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    choose = random.Random(options.seed)
    found = {
        name: killed(name, options.out, options.kills, choose)
        for name in ("build", "add", "update", "embed")
    }
    write_json(RESULT, {"verbs": found, "seed": options.seed, "environment": environment()})
    print(found)
    return int(any(each["faults"] for each in found.values()))


if __name__ == "__main__":
    sys.exit(main())
