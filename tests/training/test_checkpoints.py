"""Damage to checkpoints, and disks that are full, as a run meets them."""

import contextlib
import errno
import resource
import shutil

import pytest
from etils import epath
from test_loop import assert_equal_states
from toy import metrics_of, toy_config

from rdcd_jax.core.errors import UserError
from rdcd_jax.training.checkpoints import Checkpoints
from rdcd_jax.training.loop import train_and_evaluate


@pytest.fixture
def config(toys, images, features):
    return toy_config(images, features, **{"schedule.max_steps": 4, "checkpoint_every": 2})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder for the undisturbed run, which the first test that needs it makes."""
    return tmp_path_factory.mktemp("whole") / "run"


def undisturbed(config, whole):
    """A copy to damage, and the state it should come to."""
    state = train_and_evaluate(config, whole)
    shutil.copytree(whole, whole.parent / "copy", dirs_exist_ok=True)
    return whole.parent / "copy", state


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def largest(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        (None, cut),
        (None, flip),
        (None, lambda path: path.unlink()),
        ("state/_METADATA", cut),
        ("state/manifest.ocdbt", flip),
        ("_CHECKPOINT_METADATA", lambda path: path.unlink()),
        ("state", shutil.rmtree),
    ],
)
def test_the_checkpoint_before_a_damaged_one_is_used(config, whole, capfd, pattern, damage):
    run, state = undisturbed(config, whole)
    newest = run / "checkpoints" / "4"
    damage(newest / pattern if pattern else largest(newest))
    assert_equal_states(train_and_evaluate(config, run), state)
    stored = capfd.readouterr().err
    assert f"{newest} is damaged" in stored and "goes on from step 2" in stored
    assert "Traceback" not in stored
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "4"]
    assert [path.name for path in (run / "checkpoints-damaged").iterdir()] == ["4"]
    assert [row["step"] for row in metrics_of(run)] == [1, 2, 3, 4]
    shutil.rmtree(run)


def test_a_run_whose_checkpoints_are_all_damaged_starts_again_where_told_to(config, whole, capfd):
    run, state = undisturbed(config, whole)
    for step in ("2", "4"):
        flip(largest(run / "checkpoints" / step))
    for _ in range(2):
        # Hours of work are not thrown away unasked, be it at the second start.
        with pytest.raises(
            UserError, match=r"checkpoints/2 is damaged .*, or move it away to train"
        ):
            train_and_evaluate(config, run)
    assert "goes on from step 2" in capfd.readouterr().err
    shutil.rmtree(run / "checkpoints" / "2")
    assert_equal_states(train_and_evaluate(config, run), state)
    shutil.rmtree(run)


@pytest.mark.parametrize("where", ["_verify", "_restored"])
def test_a_checkpoint_that_cannot_be_read_now_stays(config, whole, monkeypatch, where):
    run, state = undisturbed(config, whole)
    for error in (
        OSError(errno.EIO, "Input/output error"),
        PermissionError(errno.EACCES, "Permission denied"),
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"),
        ValueError("INTERNAL: Error reading local file: [OS error 5: EIO Input/output error]"),
    ):

        def fails(*_, error=error):
            raise error

        with (
            Checkpoints(epath.Path(run / "checkpoints"), keep=2) as checkpoints,
            monkeypatch.context() as patch,
            pytest.raises(UserError, match=r"checkpoints/4 cannot be read .*; run the same comm"),
        ):
            patch.setattr(Checkpoints, where, fails)
            checkpoints.restore(state)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "4"]
    assert not (run / "checkpoints-damaged").exists()
    shutil.rmtree(run)


def test_what_was_set_aside_before_stays(config, whole, tmp_path):
    run, state = undisturbed(config, whole)
    kept = tmp_path / "kept"
    shutil.move(run / "checkpoints", kept)
    for _ in range(2):
        flip(largest(kept / "4"))
        with Checkpoints(epath.Path(kept), keep=2) as checkpoints:
            found = checkpoints.restore(state)
            assert int(found.step) == 2
            checkpoints.save(state)
    assert sorted(path.name for path in (tmp_path / "kept-damaged").iterdir()) == ["4", "4-2"]
    shutil.rmtree(run)


@contextlib.contextmanager
def full_disk():
    """No file can grow beyond four kilobytes: that stops orbax as a full disk would, and leaves small files alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_during_a_save_does_not_stop_the_run(config, tmp_path, monkeypatch, capfd):
    from rdcd_jax.training.checkpoints import Checkpoints

    save = Checkpoints.save

    def save_on_a_full_disk(self, state):
        if int(state.step) == 2:
            with full_disk():
                save(self, state)
                self.wait()
        else:
            save(self, state)

    whole = train_and_evaluate(config, tmp_path / "whole")
    monkeypatch.setattr(Checkpoints, "save", save_on_a_full_disk)
    assert_equal_states(train_and_evaluate(config, tmp_path / "run"), whole)
    stored = capfd.readouterr().err
    assert "The checkpoint of step 2 could not be saved" in stored
    assert "the last good one is of step None" in stored
    assert "Traceback" not in stored
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["4"]


def test_a_run_whose_last_checkpoint_cannot_be_saved_says_so(config, tmp_path, monkeypatch):
    from rdcd_jax.training.checkpoints import Checkpoints

    save = Checkpoints.save

    def save_on_a_full_disk(self, state):
        with full_disk():
            save(self, state)
            self.wait()

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_on_a_full_disk)
        with pytest.raises(UserError, match=r"checkpoint of step 4 could not be saved .*Make room"):
            train_and_evaluate(config, tmp_path / "run")
    state = train_and_evaluate(config, tmp_path / "run")
    assert_equal_states(state, train_and_evaluate(config, tmp_path / "whole"))


def test_a_bucket_that_cannot_be_written_is_named():
    class Bucket:
        def __str__(self):
            return "gs://bucket/run"

        def mkdir(self, **_):
            raise RuntimeError("there is no such bucket")

    with pytest.raises(UserError, match="gs://bucket/run cannot be written .there is no such bu"):
        Checkpoints(Bucket(), keep=1)
