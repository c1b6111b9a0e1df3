"""SSCD as published: InfoNCE within a large batch with an entropy term, no teacher, no queue and no projector.

The wide linear head gives the descriptor itself. ResNet-50 starts as published (the residual branches at 0, see
rdcd_jax/models/resnet.py). The published code has no EfficientNet: it keeps torchvision's initial weights and dropout.

--config=configs/sscd.py:student=resnet50,dim=512,data=FOLDER
--config=configs/sscd.py:student=efficientnet_b0,dim=128,entropy=10,data=FOLDER --config.batch_size=512

Source: SSCD and its training code; the warm-up of 5 epochs is the code's.
"""

import ml_collections

from configs.common import base_config, make_smoke, parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config for an argument such as `student=efficientnet_b0,data=FOLDER`."""
    given = parse_arg(arg, student="resnet50", dim=512, data="", entropy=30.0, smoke=False)
    config = base_config(given.data, student=given.student, dim=given.dim)
    config.student.projector = "none"
    config.batch_size = 4096
    config.data.mixup = config.data.cutmix = 0.025
    config.objective.moco_lambda = config.objective.kld_lambda = 0.0
    config.objective.sscd_lambda = 1.0
    config.objective.entropy_lambda = given.entropy
    # Nothing reads them.
    config.queue.size = config.bank.size = 1
    config.optimizer.name = "lars"
    config.optimizer.learning_rate = 0.3
    return make_smoke(config) if given.smoke else config
