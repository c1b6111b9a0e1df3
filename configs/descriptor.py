"""The compact descriptor trained by RDCD's own terms on a trunk that stays as it is: minutes on two CPU cores.

The trunk's features of each image and of some edited views of it are computed once; the projector then learns by
InfoNCE and hard negatives between any two of them. Any recipe can end in this one. With `trainable=all` the trunk
learns along, at a small rate on live views, while its own features as they were keep it from forgetting: for
accelerators with large batches, since on a CPU, in batches of 64, it lost a point of µAP where it was tried.

Both terms are taken within a large batch, which features that were computed before allow: there the negatives are fresh
and take a gradient too, which those of a queue do not. SSCD's terms are that form; an entropy weight of 10 is a
hard-negative weight of 5, the paper's, up to constants. For the queue give --config.objective.moco_lambda=1 and
--config.objective.sscd_lambda=0.

--config=configs/descriptor.py:dim=128,init_from=MODEL,data=FOLDER
--config=configs/descriptor.py:dim=256,nested,init_from=runs/trunk/export,data=FOLDER      64, 128 and 256 in one
--config=configs/descriptor.py:trainable=all,init_from=runs/descriptor/export,data=FOLDER
"""

import ml_collections

from configs.common import base_config, make_small, make_smoke, parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config for an argument such as `dim=64,init_from=rdcd-effb0-256,data=FOLDER`."""
    given = parse_arg(
        arg,
        student="efficientnet_b0",
        init_from="rdcd-effb0-256",
        dim=128,
        nested=False,
        trainable="projector",
        image_size=224,
        views=4,
        # 50 of the projector, 4 of all.
        epochs=0,
        data="",
        smoke=False,
    )
    config = base_config(given.data, student=given.student, dim=given.dim)
    config.init_from = given.init_from
    config.image_size = given.image_size
    config.student.trainable = given.trainable
    # The start's statistics belong to its features.
    config.student.bn = "running"
    config.student.dropout = False
    config.objective.moco_lambda = config.objective.kld_lambda = 0.0
    config.objective.sscd_lambda = 1.0
    config.objective.sscd_temperature = config.objective.temperature
    config.objective.entropy_lambda = 2 * config.objective.hn_lambda
    if given.nested:
        config.objective.nested_dims = (given.dim // 4, given.dim // 2, given.dim)
    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 0.0
    config.data.cached_views = given.views
    if given.trainable == "projector":
        config.batch_size = 1024
        config.queue.size = config.bank.size = config.batch_size
        config.optimizer.learning_rate = 1.25e-3
        config.log_every = 10
        config.checkpoint_every = 100
    else:
        _train_all(config)
    epochs = given.epochs or (50 if given.trainable == "projector" else 4)
    config.schedule.epochs = epochs
    # The warm-up is part of them.
    config.schedule.warmup_epochs = min(1, epochs - 1)
    return make_smoke(config) if given.smoke else config


def _train_all(config: ml_collections.ConfigDict) -> None:
    """Sets what the trunk's own training needs: live views in small batches, a low rate, its start as the teacher."""
    make_small(config, batch_size=64, learning_rate=2e-4)
    config.student.recalibrate = 0
    config.queue.size = config.bank.size = config.batch_size
    config.objective.regress_lambda = 1.0
    config.teacher.model = config.get_oneway_ref("init_from")
