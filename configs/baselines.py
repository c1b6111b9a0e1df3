"""The methods that RDCD is measured against, on one student through one step; what they share is in the budget.

    rdcd      all terms: InfoNCE and hard negatives on the descriptor, the teacher's relations on the feature
    moco      RDCD without its relational distillation, so without a teacher
    no_hn     RDCD without hard negatives
    rsd       the relational distillation alone; the descriptor is the whitening of the feature
    sscd      SSCD's own objective within the batch, without a teacher
    compress  the teacher's relations distilled into the descriptor itself (CompRess's two queues, SEED's loss)

The paper's budget by default. `images=N` makes it a small one, for N training images on a CPU: batches of 64, a
bank of a quarter of the images, a queue of one batch, AdamW, mild edits, and moco_lambda 0.1.

--config=configs/baselines.py:method=moco,dim=128,data=FOLDER
--config=configs/baselines.py:method=rdcd,images=9145,image_size=64,epochs=20,start=efficientnet-lite0,data=FOLDER
rdcd-jax sweep --config=baselines:images=9145,image_size=64,epochs=20,data=FOLDER --out=OUT
"""

import ml_collections

from configs.common import base_config, make_small, make_smoke, parse_arg

METHODS = {
    "rdcd": {},
    "moco": {"kld_lambda": 0.0},
    "no_hn": {"hn_lambda": 0.0},
    "rsd": {"moco_lambda": 0.0},
    "sscd": {"moco_lambda": 0.0, "kld_lambda": 0.0, "sscd_lambda": 1.0},
    "compress": {"moco_lambda": 0.0, "kld_lambda": 0.0, "compress_lambda": 1.0},
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config for an argument such as `method=moco,dim=64,data=FOLDER`."""
    given = parse_arg(
        arg,
        method="rdcd",
        student="efficientnet_b0",
        dim=128,
        data="",
        image_size=224,
        epochs=100,
        images=0,
        start="",
        smoke=False,
    )
    if given.method not in METHODS:
        raise ValueError(f"there is no method '{given.method}'; it is one of {', '.join(METHODS)}")
    config = base_config(given.data, student=given.student, dim=given.dim)
    config.init_from = given.start
    config.image_size = given.image_size
    config.schedule.epochs = given.epochs
    config.objective.update(METHODS[given.method])
    if given.method == "rsd":
        config.student.projector = "whitened"
    if given.images:
        _shrink(config, given.images)
    config.evals.disc.codecs = f"Flat;PCAW{given.dim},L2norm,Flat"
    return make_smoke(config) if given.smoke else config


def _shrink(config: ml_collections.ConfigDict, images: int) -> None:
    """Sets a recipe for that many images, the same for every method."""
    # 5e-4 at this batch.
    make_small(config, batch_size=64, learning_rate=2e-3)
    config.bank.size = max(images // 4, config.batch_size)
    # A student that learns in hundreds of steps moves fast: all its descriptors drift away from older keys together,
    # which lowers the loss, teaches nothing and ends in collapse. So the queue is the batch before, and the key encoder
    # the student itself. Distilled relations do not repel, and need the rows.
    repels = config.objective.moco_lambda > 0
    config.queue.size = config.batch_size if repels else config.bank.size
    config.objective.key_momentum = 0.0
    # The published code's default, though not its script's: at 1 the terms on the descriptor drown the teacher's, and
    # there is no time to recover. Alone they are as strong as before, since AdamW knows no scale.
    config.objective.moco_lambda *= 0.1
    config.objective.entropy_lambda = 5.0
    config.evaluate.image_size = config.image_size * 3 // 2


def sweep(add) -> None:
    """The table: relational distillation on and off with three seeds, one seed for the rest."""
    for method in ("rdcd", "moco"):
        for seed in range(3):
            add(f"method={method}", seed=seed)
    for method in ("no_hn", "rsd", "sscd", "compress"):
        add(f"method={method}", seed=0)
    add("method=rdcd", seed=0, **{"objective.moco_lambda": 1.0})
