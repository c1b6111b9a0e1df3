"""Fine-tuning a shipped student's descriptor on one's own collection: minutes on a CPU, see docs/finetune.md.

The trunk stays as it is; the projector starts as the student's own, and learns by RDCD's terms between views of these
images which of them differ. A collection needs some hundreds of images, and no labels.

--config=configs/finetune.py:data=FOLDER
--config=configs/finetune.py:data=FOLDER,start=rdcd-effb0-64   another size
"""

import ml_collections

from configs.common import make_smoke, parse_arg
from configs.descriptor import get_config as descriptor
from rdcd_jax.weights.library import load_model


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config for an argument such as `data=FOLDER,epochs=10`."""
    given = parse_arg(
        arg,
        start="rdcd-effb0-128",
        # That of the start; for another one the projector begins anew.
        dim=0,
        image_size=224,
        views=4,
        batch=256,
        epochs=20,
        data="",
        smoke=False,
    )
    dim = given.dim or load_model(given.start).dim
    config = descriptor(
        f"dim={dim},init_from={given.start},image_size={given.image_size},views={given.views},"
        f"epochs={given.epochs},data={given.data}"
    )
    config.batch_size = given.batch
    # The projector adapts, and is to forget nothing.
    config.optimizer.learning_rate = 3e-4
    return make_smoke(config) if given.smoke else config
