"""Fine-tuning a shipped student on one's own collection: a batch of 16, a small GPU or a CPU, see docs/finetune.md.

MoCo's queue supplies the negatives that a small batch lacks, so the paper's own objective fits; the rate is low, since
the student only adapts. With a teacher its relations are kept; without one the student's own start is the teacher.

--config=configs/finetune.py:data=FOLDER                              its start keeps it from forgetting
--config=configs/finetune.py:data=FOLDER,teacher=sscd                 a teacher does
--config=configs/finetune.py:data=FOLDER,start=rdcd-effb0-64,dim=64   another size
"""

import ml_collections

from configs.common import base_config, make_small, make_smoke, parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config for an argument such as `data=FOLDER,epochs=10`."""
    given = parse_arg(
        arg,
        start="rdcd-effb0-128",
        dim=128,
        teacher="",
        image_size=128,
        epochs=5,
        queue=512,
        data="",
        smoke=False,
    )
    config = base_config(given.data, dim=given.dim)
    config.init_from = given.start
    config.image_size = given.image_size
    make_small(config, batch_size=16, learning_rate=1.6e-3)
    # Few pictures of one kind say little of BatchNorm's statistics; the start's were measured on many.
    config.student.bn = "running"
    config.student.calibrate = 0
    config.teacher.model = given.teacher or given.start
    # Well below the number of pictures, or a picture meets its own past keys as negatives.
    config.queue.size = config.bank.size = given.queue
    config.schedule.epochs = given.epochs
    config.evaluate.image_size = 224
    return make_smoke(config) if given.smoke else config
