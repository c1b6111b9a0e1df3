"""RDCD as published: MoCo with a hard-negative term on the compact descriptor, relational distillation on the feature.

--config=configs/rdcd.py:student=efficientnet_b0,teacher=sscd_resnet50,dim=128,data=FOLDER
--config=configs/rdcd.py:student=fastvit_t12,teacher=dino:dino_vitbase8_pretrain.pth,data=FOLDER
"""

import ml_collections

from configs.common import base_config, make_smoke, parse_arg

# The teachers' names in the paper's terms, and the models they mean.
TEACHERS = {"sscd_resnet50": "sscd"}
# Networks whose weights come from files alone: by these names the imported ones, in a smoke run random ones.
IMPORTED = ("resnext101_32x4d", "vit_b8", "vit_b16")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config for an argument such as `dim=64,data=FOLDER`."""
    given = parse_arg(
        arg,
        student="efficientnet_b0",
        teacher="sscd_resnet50",
        dim=128,
        data="",
        smoke=False,
    )
    config = base_config(given.data, student=given.student, dim=given.dim)
    config.teacher.model = TEACHERS.get(given.teacher, given.teacher)
    if given.smoke and given.teacher in IMPORTED:
        config.teacher.model = f"random:{given.teacher}"
    return make_smoke(config) if given.smoke else config
