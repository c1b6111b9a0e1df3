"""The demo's training: a compact descriptor on the shipped trunk, in a minute on two CPU cores.

The trunk's features of the bundled images and of four edited views of each are computed once. Then the projector, which
starts as their whitening, learns by InfoNCE and hard negatives between the views (see `configs/descriptor.py`), and
the descriptor's relations to other images follow the teacher's. That term is light: on so few images more of it costs
more than it brings.

--config=configs/demo.py:data=FOLDER
"""

import ml_collections

from configs.common import make_smoke, parse_arg
from configs.descriptor import get_config as descriptor


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config for an argument such as `data=FOLDER`."""
    given = parse_arg(arg, dim=64, epochs=100, data="", smoke=False)
    config = descriptor(
        f"dim={given.dim},image_size=160,epochs={given.epochs},data={given.data}",
    )
    config.batch_size = config.queue.size = config.bank.size = 400
    config.objective.compress_lambda = 0.1
    config.teacher.features = "cached"
    config.data.workers = 1
    config.log_every = 20
    return make_smoke(config) if given.smoke else config
