"""The demo's training: a shipped starting student, a new small descriptor, the bundled pictures, minutes on a CPU.

--config=configs/demo.py:data=FOLDER
"""

import ml_collections

from configs.common import base_config, make_smoke, parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config for an argument such as `data=FOLDER`."""
    given = parse_arg(arg, dim=64, data="", smoke=False)
    config = base_config(given.data)
    config.init_from = "rdcd-effb0-start"
    config.student.dim = given.dim
    config.student.dropout = False
    config.student.calibrate = 800
    config.teacher.features = "cached"
    config.data.policy = "MILD"
    config.data.workers = 1
    config.image_size = 96
    config.batch_size = 64
    config.queue.size = config.bank.size = 512
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.05
    config.schedule.epochs = 12
    config.schedule.warmup_epochs = 1
    config.log_every = 12
    config.checkpoint_every = 48
    config.evaluate.image_size = 128
    return make_smoke(config) if given.smoke else config
