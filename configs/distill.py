"""Distillation for small budgets: the teacher's relations and features, with SSCD's objective instead of a queue.

The teacher describes each training picture once, unedited; the student learns to give that description to edited views
(regression and relational KL) and to keep pictures apart within the batch (SSCD). Where configs/rdcd.py needs a GPU and
long queues, this trains in hours on a CPU.

--config=configs/distill.py:dim=128,image_size=64,epochs=20,data=FOLDER
"""

import ml_collections

from configs.common import make_smoke, parse_arg
from configs.warm_start import get_config as warm_start


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config for an argument such as `dim=64,data=FOLDER`."""
    given = parse_arg(arg, dim=128, image_size=64, epochs=20, data="", smoke=False)
    config = warm_start(
        f"dim={given.dim},image_size={given.image_size},epochs={given.epochs},data={given.data}"
    )
    config.teacher.features = "cached"
    config.objective.kld_lambda = 0.3
    config.objective.regress_lambda = 5.0
    config.bank.size = 4096
    config.optimizer.learning_rate = 4e-3
    return make_smoke(config) if given.smoke else config
