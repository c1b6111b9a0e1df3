"""The demo's training: random weights, the bundled images, minutes on a CPU.

SSCD's objective within the batch on small views, with the relations of the teacher's cached descriptors. MoCo's queue
is left out: in a few hundred steps its slow key encoder falls behind the student, and of 800 images a queue would
soon hold an image's own past keys as negatives.

--config=configs/demo.py:data=FOLDER
"""

import ml_collections

from configs.common import make_smoke, parse_arg
from configs.warm_start import get_config as warm_start


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config for an argument such as `data=FOLDER`."""
    given = parse_arg(arg, dim=64, data="", smoke=False)
    config = warm_start(f"dim={given.dim},image_size=64,epochs=24,data={given.data}")
    config.teacher.features = "cached"
    config.objective.kld_lambda = 0.1
    config.bank.size = 512
    config.student.recalibrate = 800
    config.data.workers = 1
    config.log_every = 12
    config.checkpoint_every = 96
    return make_smoke(config) if given.smoke else config
