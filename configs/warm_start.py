"""A warm start for small budgets: SSCD's objective within the batch on small, mildly edited views.

Its negatives are fresh and both views give gradients, so the student leaves its random weights in thousands of steps
where a queue of 65,536 takes many more; configs/rdcd.py continues from its export with --init-from.

--config=configs/warm_start.py:dim=128,image_size=64,epochs=40,data=FOLDER
"""

import ml_collections

from configs.common import base_config, make_small, make_smoke, parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config for an argument such as `image_size=64,data=FOLDER`."""
    given = parse_arg(
        arg,
        student="efficientnet_b0",
        dim=128,
        image_size=64,
        epochs=40,
        data="",
        smoke=False,
    )
    config = base_config(given.data, student=given.student, dim=given.dim)
    make_small(config, batch_size=64, learning_rate=8e-3)
    config.image_size = given.image_size
    config.objective.moco_lambda = config.objective.kld_lambda = 0.0
    config.objective.sscd_lambda = 1.0
    config.objective.entropy_lambda = 5.0
    config.objective.sscd_temperature = 0.07
    config.queue.size = config.bank.size = config.batch_size
    config.schedule.epochs = given.epochs
    config.evaluate.image_size = 96
    return make_smoke(config) if given.smoke else config
