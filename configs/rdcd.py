"""RDCD as published: MoCo with a hard-negative term on the compact descriptor, relational distillation on the feature.

--config=configs/rdcd.py:student=efficientnet_b0,teacher=sscd_resnet50,dim=128,data=FOLDER
"""

import ml_collections

from configs.common import base_config, make_smoke, parse_arg

# The teachers' names in the paper's terms, and the models they mean.
TEACHERS = {"sscd_resnet50": "sscd"}


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
    return make_smoke(config) if given.smoke else config
