"""Distillation for small budgets: the student learns to embed a view as the teacher embeds that very view.

Nothing else is learned with gradients: the compact descriptor is the whitening of the student's features, as it is of
the teacher's own. Teacher and student see the same pixels, crop and edits included, so that each view is a lesson of
its own and a few thousand images teach for many epochs. Where configs/rdcd.py needs a GPU, this trains on a CPU.

--config=configs/distill.py:dim=128,image_size=96,epochs=40,data=FOLDER
--config=configs/distill.py:data=FOLDER --config.teacher.model=onnxruntime
rdcd-jax sweep --config=distill:image_size=64,data=FOLDER --out=OUT --config.evals.disc.data=BENCHMARK
"""

import ml_collections

from configs.common import make_smoke, parse_arg
from configs.warm_start import get_config as warm_start


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config for an argument such as `dim=64,data=FOLDER`."""
    given = parse_arg(arg, dim=128, image_size=96, epochs=40, data="", smoke=False)
    config = warm_start(
        f"dim={given.dim},image_size={given.image_size},epochs={given.epochs},data={given.data}"
    )
    config.student.projector = "whitened"
    config.objective.sscd_lambda = 0.0
    config.objective.regress_lambda = 1.0
    config.optimizer.learning_rate = 16e-3
    return make_smoke(config) if given.smoke else config


def sweep(add) -> None:
    """What more images are worth: as many steps on a sixteenth of them, a quarter, and all."""
    for share, epochs in ((1 / 16, 128), (1 / 4, 32), (1.0, 8)):
        add(f"epochs={epochs}", **{"data.share": share})
