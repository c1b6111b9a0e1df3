"""What becomes of a state: a model, its evaluations, an export."""

import dataclasses
import logging
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from rdcd_jax.core import hosts
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.stream import embed_images
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.method.objective import Objective
from rdcd_jax.method.state import TrainState
from rdcd_jax.models.descriptor import DescriptorHead
from rdcd_jax.search.score_norm import LEAST_BACKGROUND
from rdcd_jax.search.view_calibration import MOST_IMAGES, calibrate_on_views
from rdcd_jax.training.evaluators import evaluate, evaluations
from rdcd_jax.training.fitting import evenly_spread, recalibrate_batch_norm, whitened_projector
from rdcd_jax.training.frozen import ViewFeatures
from rdcd_jax.training.results import portable
from rdcd_jax.weights.library import export_model
from rdcd_jax.weights.model import Model, computing_in, evaluation_mode

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Finish:
    """Turns states into models; evaluates and exports these.

    Attributes:
        config: of the run.
        student: gives the structure.
        images: the training images, for what is fitted to them after training.
        workdir: where descriptors lie that all processes make.
        results: where results go.
        views: features of the images, where the trunk is frozen.
        licences: of the weights that the student was made from, its start's and its teacher's.
    """

    config: ml_collections.ConfigDict
    student: nnx.Module
    images: ImageSet
    workdir: pathlib.Path
    results: pathlib.Path
    views: ViewFeatures | None = None
    licences: tuple[str, ...] = ()

    @property
    def untrained(self) -> Model:
        """The student as it is at the start, at the evaluation's size."""
        return self._model_of(self.student)

    def _model_of(self, module: nnx.Module) -> Model:
        model = Model(
            name=self.workdir.resolve().name,
            network=self.config.student.network,
            module=evaluation_mode(module),
            image_size=self.config.evaluate.image_size,
        )
        # Whoever loads the export computes in float32, however it was trained.
        return model if self.config.student.dtype == "float32" else computing_in("float32", model)

    @property
    def evaluates(self) -> bool:
        """Whether the config names an evaluation."""
        return bool(evaluations(self.config))

    def model(self, state: TrainState) -> Model:
        """The student of a state as it would be exported, with weights of its own."""
        module = nnx.clone(self.student)
        # The host's copy: one process's whole weights, free of the mesh.
        nnx.update(module, jax.device_get(state.params), jax.device_get(state.batch_stats))
        if self.config.student.projector == "start":
            # Weight decay moves what no gradient reaches.
            nnx.update(module.projector, nnx.state(self.student.projector))
        model = self._model_of(module)
        if hosts.is_first():
            self._fit(model)
        arrays = nnx.state(model.module, (nnx.Param, nnx.BatchStat))
        nnx.update(model.module, hosts.from_first(arrays))
        return model

    def _fit(self, model: Model) -> None:
        """Fits to the images what no gradient fits, in place."""
        if self.config.student.recalibrate:
            recalibrate_batch_norm(model, self.images, self.config.student.recalibrate)
        if self.config.student.projector == "whitened":
            whitened_projector(model, self.images)

    def evaluate(self, model: Model, step: int, *, last: bool) -> list[dict]:
        """Rows for `metrics.jsonl`: every evaluation's figures of the model after a step; none where none is asked for.

        Training goes on past an evaluation that the disk has no room for, but for the last one.

        Raises:
            OSError: of the last evaluation.
        """
        figures: dict[str, float | None] = {}
        for name, options in evaluations(self.config).items():
            folder = self.workdir / "evaluations" / str(step) / name
            try:
                found = evaluate(model, options, folder)
            except OSError as error:
                # Several processes must all go on, or all end.
                if last or hosts.count() > 1:
                    raise
                _log.warning("The evaluation '%s' after step %d failed (%s).", name, step, error)
                continue
            figures |= {f"evaluate/{name}/{figure}": value for figure, value in found.items()}
        return [{"step": step, **figures}] if figures else []

    def export(self, model: Model, step: int) -> None:
        """Writes `export/`."""
        about = {"trained": {"steps": step, "images": len(self.images), **self._made_from()}}
        if self.licences:
            about["licences"] = list(dict.fromkeys(self.licences))
        background = self._background(model) if self.config.student.background else ()
        if len(background) >= LEAST_BACKGROUND:
            # Of fewer images nothing is normalised.
            model = dataclasses.replace(model, background=background)
        if self.views is not None:
            about |= self._calibration(model)
        export_model(self.results / "export", model, about=about)

    def _made_from(self) -> dict[str, str]:
        """The models that the student was made from, without the folders they lie in."""
        found = {}
        if Objective(**self.config.objective).needs_teacher and self.config.teacher.features in (
            "live",
            "cached",
        ):
            found["teacher"] = portable(self.config.teacher.model)
        if self.config.init_from:
            found["started from"] = portable(self.config.init_from)
        return found

    def _background(self, model: Model) -> np.ndarray:
        """Descriptors of training images, unedited."""
        positions = evenly_spread(len(self.images), self.config.student.background)
        if self.views is not None:
            return _described(model, self.views.unedited[positions])
        return embed_images(model, self.images.subset(positions))[0].descriptors

    def _calibration(self, model: Model) -> dict:
        """What the card says of the meaning of scores; nothing where the images do not tell."""
        positions = evenly_spread(len(self.images), MOST_IMAGES)
        numbers = np.random.default_rng(0).integers(len(self.views.edited), size=len(positions))
        try:
            found = calibrate_on_views(
                _described(model, self.views.unedited[positions]),
                _described(model, self.views.edited_views(numbers, positions)),
                background=0 if model.background is None else len(model.background),
            )
        except UserError as error:
            _log.warning(
                "The export does not know what its scores mean: %s Give --threshold where it is used, or the"
                " calibration that `rdcd-jax evaluate disc` measures.",
                error,
            )
            return {}
        return {"calibration": found}


def _described(model: Model, features: np.ndarray) -> np.ndarray:
    """Descriptors [M, D] of features [M, F] of a student's trunk."""
    return np.asarray(DescriptorHead(model.module.projector)(jnp.asarray(features))[1])
