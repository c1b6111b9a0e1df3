import os
import pathlib
import subprocess
import sys
import types

import ml_collections
import pytest
from toy import CONFIGS, make_images, toy_config

from rdcd_jax.cli import main
from rdcd_jax.core.errors import UserError
from rdcd_jax.images.sources import find_images
from rdcd_jax.training import record
from rdcd_jax.training.check import check_config
from rdcd_jax.training.config import load_config
from rdcd_jax.training.plan import make_plan
from rdcd_jax.training.setup import inputs

FILES = sorted(path for path in CONFIGS.glob("*.py") if path.stem not in ("__init__", "common"))
ROOT = pathlib.Path(__file__).parents[2]
RDCD = str(CONFIGS / "rdcd.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_loads_and_has_a_smoke_variant(path):
    full = load_config(f"{path}:data=/some/images", [])
    assert full.data.train == "/some/images"
    check_config(full)
    smoke = load_config(f"{path}:smoke", [])
    # A smoke run needs no images of the user's.
    assert len(find_images(smoke.data.train)) >= smoke.batch_size
    assert (smoke.image_size, smoke.batch_size) == (32, 8)
    assert 1 <= smoke.schedule.max_steps <= 10
    check_config(smoke)
    assert load_config(f"{path}:smoke,data=/some/images", []).data.train == "/some/images"


def test_the_paper_s_values():
    config = load_config(f"{RDCD}:student=efficientnet_b0,teacher=sscd_resnet50,dim=64,data=x", [])
    assert config.student.network == "efficientnet_b0"
    assert config.student.dim == 64
    assert config.teacher.model == "sscd"
    assert (config.batch_size, config.queue.size, config.bank.size) == (256, 65536, 65536)
    objective = config.objective
    assert (objective.temperature, objective.kld_temperature) == (0.07, 0.04)
    assert (objective.hn_lambda, objective.key_momentum) == (5.0, 0.99)


def test_argument_values_take_their_types():
    config = load_config(f"{RDCD}:dim=32,data=/a=b/c d,smoke=false", [])
    assert config.student.dim == 32
    assert config.data.train == "/a=b/c d"
    assert config.batch_size == 256
    assert load_config(f"{RDCD}:smoke=TRUE", []).batch_size == 8
    assert load_config(RDCD, []).to_dict() == load_config(f"{RDCD}:", []).to_dict()


@pytest.mark.parametrize(
    ("arg", "match"),
    [
        ("smok", "the config argument has no 'smok'; it takes .*smoke"),
        ("dim=many", "the config argument dim='many' is not of type int"),
        ("dim", "the config argument dim='' is not of type int"),
        ("smoke=perhaps", "the config argument smoke='perhaps' is not of type bool"),
    ],
)
def test_wrong_arguments_are_refused(arg, match):
    with pytest.raises(UserError, match=match) as caught:
        load_config(f"{RDCD}:{arg}", [])
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_overrides_take_the_field_s_type():
    overrides = [
        "--config.batch_size=64",
        "--config.optimizer.name=adamw",
        "--config.objective.hn_lambda=3",
        "--config.student.dropout=false",
        "--config.batch_size=32",
    ]
    config = load_config(f"{RDCD}:data=x", overrides)
    assert config.batch_size == 32, "the last one holds"
    assert config.optimizer.name == "adamw"
    assert config.objective.hn_lambda == 3.0 and type(config.objective.hn_lambda) is float
    assert config.student.dropout is False
    # Nothing stays behind for the next.
    assert load_config(RDCD, []).batch_size == 256


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("--config.batchsize=3", "has no field 'batchsize'; did you mean batch_size"),
        ("--config.queue.sze=3", "has no field 'queue.sze'; did you mean queue.size"),
        ("--config.batch_size.x=3", "has no field 'batch_size.x'"),
        ("--config.a.b.c=3", "has no field 'a.b.c'"),
        ("--config.student=3", "has no field 'student'"),
        ("--config.batch_size=many", "--config.batch_size=many"),
        ("--config.batch_size=1.5", "--config.batch_size=1.5"),
        ("--config.batch_size", "config.batch_size"),
        ("--config.student.dropout=perhaps", "--config.student.dropout=perhaps"),
        ("--batch_size=3", "Unknown argument --batch_size=3"),
        ("3", "Unknown argument 3"),
    ],
)
def test_mistyped_overrides_are_reported_in_a_sentence(override, match):
    with pytest.raises(UserError, match=match) as caught:
        load_config(RDCD, [override])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("def get_config(: x", "invalid syntax"),
        ("def get_config(arg=None): raise RuntimeError('not today')", "not today"),
        ("def get_config(arg=None): return 3", "gives a int, not a ConfigDict"),
        ("import nothing_of_this_name", "nothing_of_this_name"),
    ],
)
def test_broken_config_files_are_reported_in_a_sentence(tmp_path, text, match):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError, match=match) as caught:
        load_config(str(path), [])
    assert str(path) in str(caught.value)
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


def test_missing_config_file_is_refused():
    with pytest.raises(UserError, match=r"nope\.py: there is no such config file"):
        load_config("nope.py:smoke", [])


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("batch_size", 0, r"config\.batch_size is 0; it must be above 0"),
        ("image_size", -1, r"config\.image_size is -1; it must be above 0"),
        ("log_every", 0, r"config\.log_every is 0"),
        ("schedule.epochs", 0, r"config\.schedule\.epochs is 0"),
        ("schedule.max_steps", -1, r"config\.schedule\.max_steps is -1; it must not be negative"),
        ("optimizer.learning_rate", float("nan"), r"config\.optimizer\.learning_rate is nan"),
        ("optimizer.weight_decay", float("nan"), r"config\.optimizer\.weight_decay is nan"),
        ("optimizer.learning_rate", float("inf"), r"learning_rate is inf; it must be a finite"),
        ("optimizer.momentum", float("nan"), r"config\.optimizer\.momentum is nan"),
        ("seed", 2**31, r"config\.seed is 2147483648; it must be at most 2147483647"),
        ("schedule.epochs", 2**31 - 1, r"config\.schedule\.epochs is 2147483647; .* 1000000"),
        ("data.share", 0.0, r"config\.data\.share is 0\.0; it must be above 0"),
        ("data.share", 1.5, r"config\.data\.share is 1\.5; it must be at most 1\."),
        ("bank.size", 2**62, r"config\.bank\.size is .*; it must be at most 67108864"),
        ("objective.temperature", 0.0, r"config\.objective\.temperature is 0"),
        ("objective.kld_lambda", -1.0, r"config\.objective\.kld_lambda is -1"),
        ("objective.key_momentum", 1.5, r"key_momentum is 1.5; it must be at most 1"),
        (
            "optimizer.name",
            "adam",
            r"config\.optimizer\.name is 'adam'; use one of sgd, adamw, lars",
        ),
        ("student.dtype", "float16", r"config\.student\.dtype is 'float16'"),
        ("student.projector", "white", r"config\.student\.projector is 'white'"),
        ("student.projector", "whitened", "only these train the projector.*or 'none'"),
        ("objective.compress_lambda", -1.0, r"config\.objective\.compress_lambda is -1"),
        ("teacher.bn", "none", r"config\.teacher\.bn is 'none'; use one of running, batch"),
        ("data.train", "", r"config\.data\.train is empty"),
        ("data.policy", "WILD", "WILD.*ADVANCED"),
        ("queue.size", 7, r"config\.queue\.size is 7, smaller than config\.batch_size = 8"),
        ("bank.size", 7, r"config\.bank\.size is 7, smaller than config\.batch_size = 8"),
        ("student.bn", "running", r"keeps the start's statistics, but config\.init_from is empty"),
    ],
)
def test_impossible_values_are_refused(name, value, match):
    config = toy_config("/some/images")
    check_config(config)
    with pytest.raises(UserError, match=match):
        check_config(toy_config("/some/images", **{name: value}))


def test_an_evaluation_s_codecs_are_checked_where_it_takes_place():
    config = toy_config("/some/images", **{"evals.ndec.codecs": "Flat;IVF"})
    check_config(config)
    config.evals.ndec.data = "/a/benchmark"
    with pytest.raises(UserError, match="IVF"):
        check_config(config)


def test_fields_that_nothing_reads_are_refused():
    config = toy_config("/some/images")
    with config.unlocked():
        config.student.droput = True
    with pytest.raises(UserError, match=r"config\.student\.droput .*did you mean student\.dropout"):
        check_config(config)


def test_values_of_another_type_are_refused():
    config = toy_config("/some/images")
    with config.ignore_type():
        config.student.dim = "128"
    with pytest.raises(UserError, match=r"config\.student\.dim is '128'; it must be of type int"):
        check_config(config)


def test_an_objective_without_a_term_is_refused():
    nothing = {"objective.moco_lambda": 0.0, "objective.kld_lambda": 0.0}
    with pytest.raises(UserError, match=r"config\.objective has no term"):
        check_config(toy_config("x", **nothing))
    check_config(toy_config("x", **nothing, **{"objective.sscd_lambda": 1.0}))


def test_compress_needs_queue_and_bank_of_one_size():
    alone = {"objective.moco_lambda": 0.0, "objective.kld_lambda": 0.0}
    alone["objective.compress_lambda"] = 1.0
    check_config(toy_config("x", **alone))
    match = r"config\.queue\.size is 24 and config\.bank\.size 32, .* give both one size"
    with pytest.raises(UserError, match=match):
        check_config(toy_config("x", **alone, **{"bank.size": 32}))
    with pytest.raises(UserError, match=r"config\.queue\.size is 4, smaller than"):
        check_config(toy_config("x", **alone, **{"queue.size": 4, "bank.size": 4}))
    with pytest.raises(UserError, match="only these train the projector"):
        check_config(toy_config("x", **alone, **{"student.projector": "whitened"}))


def test_a_learned_projector_needs_a_term():
    changes = {"objective.moco_lambda": 0.0}
    with pytest.raises(
        UserError, match="projector is 'learned' with objective.sscd_lambda 0.0, moco_lambda 0.0"
    ):
        check_config(toy_config("x", **changes))
    for projector in ("whitened", "start", "none"):
        check_config(toy_config("x", **changes, **{"student.projector": projector}))
    check_config(toy_config("x", **{"student.projector": "none"}))


def test_bits_need_the_projector_that_trains():
    changes = {"objective.moco_lambda": 0.0, "objective.binary_lambda": 3.0}
    for projector in ("whitened", "start"):
        with pytest.raises(UserError, match=rf"binary_lambda is 3.0 with .* '{projector}'"):
            check_config(toy_config("x", **changes, **{"student.projector": projector}))
    check_config(toy_config("x", **changes, **{"student.projector": "none"}))
    check_config(toy_config("x", **{"objective.binary_lambda": 3.0}))


def test_a_teacher_s_batch_statistics_need_it_in_the_step():
    batch = {"teacher.bn": "batch"}
    check_config(toy_config("x", **batch))
    for changes in ({"teacher.features": "cached"}, {"teacher.model": "onnxruntime"}):
        with pytest.raises(UserError, match=r"config\.teacher\.bn is 'batch', but the teacher"):
            check_config(toy_config("x", **batch, **changes))
    check_config(toy_config("x", **batch, **changes, **{"objective.kld_lambda": 0.0}))


def test_a_buffer_that_nothing_uses_may_be_small():
    changes = {"objective.moco_lambda": 0.0, "objective.sscd_lambda": 1.0, "queue.size": 1}
    check_config(toy_config("x", **changes))


def test_a_config_that_lacks_a_field_is_refused():
    config = toy_config("x").to_dict()
    del config["teacher"]["bn"]
    with pytest.raises(UserError, match=r"no field 'teacher\.bn'; start from configs\.common"):
        check_config(ml_collections.ConfigDict(config))


def test_configs_by_name_and_a_config_of_one_s_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("rdcd:dim=64", []).student.dim == 64
    own = tmp_path / "mine" / "my.py"
    own.parent.mkdir()
    own.write_text(
        "from configs.common import base_config, parse_arg\n"
        "def get_config(arg=None):\n"
        "    return base_config(dim=parse_arg(arg, dim=32).dim)\n"
    )
    assert load_config(f"{own}:dim=96", []).student.dim == 96
    with pytest.raises(UserError, match="There is no config 'rdcdd'.*: .*rdcd, sscd"):
        load_config("rdcdd", [])
    with pytest.raises(UserError, match="no such config file; the project's are known by name"):
        load_config("configs/rdcd.py", [])


def test_a_config_of_one_s_own_works_through_the_console_script(tmp_path):
    """Where neither the checkout nor its configs are importable by themselves."""
    own = tmp_path / "my.py"
    own.write_text("from configs.rdcd import get_config\n")
    words = [sys.executable, "-m", "rdcd_jax", "train", f"--config={own}:smoke,dim=0"]
    done = subprocess.run(
        [*words, f"--workdir={tmp_path / 'run'}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "config.student.dim is 0; it must be above 0" in done.stderr
    assert not (tmp_path / "run").exists()


def test_fine_tuning_keeps_the_start_s_size_unless_told_otherwise():
    for given, dim in (
        ("", 128),
        (",start=rdcd-effb0-64", 64),
        (",start=rdcd-effb0-64,dim=32", 32),
    ):
        assert load_config(f"finetune:data=x{given}", []).student.dim == dim


def test_a_package_configs_of_the_program_s_own_stays(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("configs.")]:
        monkeypatch.delitem(sys.modules, name)
    theirs = types.ModuleType("configs")
    monkeypatch.setitem(sys.modules, "configs", theirs)
    assert load_config("rdcd:data=x", []).data.train == "x"
    assert sys.modules["configs"] is theirs and "configs.common" not in sys.modules


def test_a_plan_says_what_a_run_would_be(toys, images, features, tmp_path, capsys):
    config = tmp_path / "my.py"
    config.write_text(
        "from configs.rdcd import get_config as rdcd\n"
        "def get_config(arg=None):\n"
        f"    config = rdcd('smoke,dim=4,data={images}')\n"
        "    config.student.network = 'toy'\n"
        "    config.evaluate.image_size = 32\n"
        f"    config.teacher.features = '{features}'\n"
        "    return config\n"
    )
    words = ["train", f"--config={config}", f"--workdir={tmp_path / 'run'}", "--dry-run"]
    assert main([*words, "--config.batch_size=16", "--config.log_every=3"]) == 0
    printed = capsys.readouterr().out
    assert "batch_size = 16    [command line]" in printed
    assert "student.network = 'toy'    [config]" in printed
    assert "optimizer.momentum = 0.9    [default]" in printed
    assert "40 images in" in printed and "2 steps, 2 an epoch, of 16 images each" in printed
    assert "M parameters in the student" in printed and "GB for what lies between" in printed
    assert not (tmp_path / "run").exists()
    # A run's warnings, and what would be wrong after what is right.
    queue = ["--config.objective.moco_lambda=1", "--config.queue.size=32"]
    assert main([*words, "--config.batch_size=16", *queue]) == 0
    assert "queue.size is 32 for 40 training images" in capsys.readouterr().err
    assert main([*words, "--config.batch_size=64"]) == 1
    stored = capsys.readouterr()
    assert "40 images do not fill one batch of 64" in stored.err and "batch_size = 64" in stored.out


def test_images_are_known_by_their_content_and_others_are_told_of(toys, tmp_path, caplog):
    folder = make_images(tmp_path / "images", 40)
    (folder / "T00007.jpg").rename(folder / "T00007")
    (folder / "T.heic").write_bytes(b"")
    images, _ = inputs(toy_config(folder))
    assert len(images) == 40 and "T00007" in images.ids
    assert "left out, since they are not read as images: 1 .heic" in caplog.text


def test_a_plan_knows_the_run_that_the_workdir_holds(toys, images, features, tmp_path):
    config = toy_config(images, features)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    record.begin(tmp_path, config.to_dict())
    path = tmp_path / "toy.py"
    path.write_text(
        "import ml_collections\n"
        f"def get_config():\n    return ml_collections.ConfigDict({config.to_dict()!r})\n"
    )
    plan = make_plan(str(path), [], tmp_path)
    assert not plan.problems and f"{tmp_path} holds a run, which would be continued." in plan.facts
    plan = make_plan(str(path), ["--config.seed=3"], tmp_path)
    assert "holds a run with config.seed = 0, and this config has 3" in plan.problems[0]
    assert not any("continued" in fact for fact in plan.facts)


def test_a_plan_knows_the_images_of_the_run_that_the_workdir_holds(toys, features, tmp_path):
    images = make_images(tmp_path / "images", 16)
    config = toy_config(images, features)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    record.begin(tmp_path, config.to_dict(), find_images(images).fingerprint())
    (images / "T00003.jpg").unlink()
    path = tmp_path / "toy.py"
    path.write_text(
        "import ml_collections\n"
        f"def get_config():\n    return ml_collections.ConfigDict({config.to_dict()!r})\n"
    )
    (problem,) = make_plan(str(path), [], tmp_path).problems
    assert "there were 16 images, and now there are 15; bring that set back" in problem
