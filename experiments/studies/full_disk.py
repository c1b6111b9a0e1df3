"""Lets the disk fill up under `index build`, `index add`, `index update` and `embed`, and looks at what is left.

    mkdir small && sudo mount -t tmpfs -o size=16m tmpfs small
    python -m experiments.studies.full_disk small [--steps 12]

Each verb works as in `survive_index`, in a small file system of which a file leaves so many bytes free, from none to
twice what the verb needs. It must end with one sentence that says that the disk is full and names a path there, or do
its work; what was in the index must stay, and once there is room the same command must come to what an undisturbed run
does, with no temporary file left. Written to experiments/results/full_disk.json.
"""

import argparse
import os
import pathlib
import subprocess
import sys

from experiments.studies.survive_index import ROOT, Job
from rdcd_jax.core.files import write_json
from rdcd_jax.training.record import environment

RESULT = ROOT / "experiments" / "results" / "full_disk.json"
FULL = "No space left on device"


def used(folder: pathlib.Path) -> int:
    """Bytes in use of a file system."""
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def filled(folder: pathlib.Path, free: int) -> pathlib.Path:
    """Makes a file that leaves so many bytes of the file system free."""
    ballast = folder / "ballast"
    found = os.statvfs(folder)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(found.f_bavail * found.f_frsize - free, 1))
    return ballast


def fault_of(job: Job, code: int, errors: str) -> str:
    """What is wrong with how a verb ended that found no room; empty for nothing."""
    last = errors.strip().rpartition("\n")[2]
    if "Traceback" in errors or FULL not in last or str(job.folder) not in last:
        return f"exit {code} and {errors.strip()[-500:]!r}"
    return ""


def run(name: str, small: pathlib.Path, steps: int) -> dict:
    """Runs a verb with more and more room."""
    whole = Job(name, small / name)
    before = used(small)
    whole.finish()
    expected, need = whole.rows(), used(small) - before
    faults, refused, ended = [], 0, 0
    for step in range(steps):
        job = Job(name, small / name)
        had = job.rows()
        ballast = filled(small, 2 * need * step // (steps - 1))
        process = job.start(errors=subprocess.PIPE)
        _, errors = process.communicate()
        refused += process.returncode != 0
        ended += process.returncode == 0
        if process.returncode and (fault := fault_of(job, process.returncode, errors)):
            faults.append(fault)
        found = job.rows()
        if name != "update":
            faults += [f"{key} is lost" for key in had if key not in found]
        faults += ["it did not do its work"] * (process.returncode == 0 and found != expected)
        ballast.unlink()
        job.finish()
        faults += ["the end differs"] * (job.rows() != expected)
        faults += [f"{name} is left" for name in job.leftovers()]
    return {"need": need, "full": refused, "enough": ended, "faults": faults}


def main() -> int:
    """Runs all, and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("small", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    verbs = ("build", "add", "update", "embed")
    found = {name: run(name, options.small.resolve(), options.steps) for name in verbs}
    write_json(RESULT, {"verbs": found, "steps": options.steps, "environment": environment()})
    print(found)
    return int(any(each["faults"] for each in found.values()))


if __name__ == "__main__":
    sys.exit(main())
