"""A network with weights."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from rdcd_jax.core.mesh import local_mesh
from rdcd_jax.embedding.stream import Embeds
from rdcd_jax.models.branches import reparameterised
from rdcd_jax.models.descriptor import DescriptorNet, normalize_images
from rdcd_jax.models.registry import abstract, refuse_image_size
from rdcd_jax.weights import convert
from rdcd_jax.weights.onnx_model import OnnxModel, require_pixels, require_size, unit_length

# What computes descriptors.
JAX, INT8 = "jax", "onnxruntime-int8"


@dataclasses.dataclass(frozen=True)
class Model(Embeds):
    """A network with weights, ready to embed images.

    Attributes:
        name: what its descriptors are called by.
        network: its name in the registry.
        module: in evaluation mode.
        image_size: S, the side of the square images that it is best given, or their short edge.
        card: what its `model.json` says.
        short_edge: images should keep their aspect, see `embedding.shapes`.
        background: [T, D] float32, descriptors of unrelated images, for score normalisation; None without.
        spec: what `load_model` loads it by, in any folder; empty for a model that lies nowhere.
        int8: a file of the network in 8-bit integers; None without.
        quantised: that file, where it is to compute the descriptors; None for JAX. See `engines.with_engine`.
    """

    name: str
    network: str
    module: DescriptorNet
    image_size: int
    card: Mapping[str, object] = dataclasses.field(default_factory=dict)
    short_edge: bool = False
    background: np.ndarray | None = None
    spec: str = ""
    int8: pathlib.Path | None = None
    quantised: OnnxModel | None = None

    @property
    def licences(self) -> tuple[str, ...]:
        """Whose the weights are, as the card says; nothing where it does not."""
        found = self.card.get("licences")
        return tuple(map(str, found)) if isinstance(found, list) else ()

    @property
    def engine(self) -> str:
        """What computes the descriptors."""
        return JAX if self.quantised is None else INT8

    @functools.cached_property
    def _embedded(self) -> Callable[[np.ndarray], jax.Array]:
        # This process's own devices: others embed other images.
        mesh = local_mesh()
        whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
        graph, state = nnx.split(reparameterised(self.module))
        state = jax.device_put(nnx.as_pure(state), whole)
        run = jax.jit(lambda state, x: nnx.merge(graph, state)(normalize_images(x))[1])

        def embedded(images: np.ndarray) -> jax.Array:
            # A training run that evaluates may be over fewer devices.
            with jax.set_mesh(mesh):
                return run(state, jax.device_put(images, split))

        return embedded

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the weights."""
        return digest_of(self)

    @functools.cached_property
    def attribute_fingerprint(self) -> str:
        """The digest by which version 0.1 knew these weights: of the module's attributes, however they are called."""
        digest = hashlib.sha256()
        state = nnx.as_pure(nnx.state(self.module, (nnx.Param, nnx.BatchStat)))
        for path, leaf in jax.tree.leaves_with_path(state):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()

    @property
    def feature_dim(self) -> int:
        """F, the size of the relational feature."""
        return self._sizes[0]

    @property
    def dim(self) -> int:
        """D, the size of the descriptor."""
        return self._sizes[1]

    @functools.cached_property
    def _sizes(self) -> tuple[int, int]:
        if self.module.projector is not None:
            return self.module.projector.in_features, self.module.projector.out_features
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
        feature, descriptor = jax.eval_shape(self.module, images)
        return feature.shape[-1], descriptor.shape[-1]

    def embed_batch(self, images: np.ndarray) -> np.ndarray:
        """Maps images [B, H, W, 3] uint8 to descriptors [B, D] float32 of unit length.

        By JAX all devices of this process share them; where B is no multiple of the devices, black images make it one.

        Raises:
            UserError: images of another type or shape.
        """
        require_pixels(images)
        if self.quantised is not None:
            # The file gives the largest of nested descriptors.
            return unit_length(self.quantised.embed_batch(images)[:, : self.dim])
        count = len(images)
        lacking = -count % jax.local_device_count()
        if lacking:
            black = np.zeros((lacking, *images.shape[1:]), images.dtype)
            images = np.concatenate([images, black])
        return np.asarray(self._embedded(images))[:count]

    def at_size(self, image_size: int | None, *, short_edge: bool = False) -> "Model":
        """The same model for images of another size.

        Args:
            image_size: side in pixels that images are resized to; None for the model as it is.
            short_edge: keeps the aspect, and makes the short edge of that length.

        Raises:
            UserError: a size that the network cannot take.
        """
        if image_size is None:
            return self
        require_size(image_size, short_edge)
        refuse_image_size(self.network, image_size)
        return dataclasses.replace(self, image_size=image_size, short_edge=short_edge)


def digest_of(model: Model, part: str = "") -> str:
    """A digest of a model's weights and statistics under their published names, which outlive any change to the code.

    Args:
        model: the model.
        part: what the names begin with, such as "backbone."; all of them where empty.
    """
    digest = hashlib.sha256()
    for name, array in sorted(convert.to_torch(model.module, model.network).items()):
        if name.startswith(part):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.data)
    return digest.hexdigest()


def computing_in(dtype: str, model: Model) -> Model:
    """The same weights and statistics in a trunk that computes in another type; in evaluation mode."""
    dim = None if model.module.projector is None else model.dim
    module = abstract(model.network, dim=dim, feature_dim=model.feature_dim, dtype=jnp.dtype(dtype))
    nnx.update(module, nnx.state(model.module, (nnx.Param, nnx.BatchStat)))
    return dataclasses.replace(model, module=evaluation_mode(module))


def evaluation_mode(module: DescriptorNet) -> DescriptorNet:
    """The module over the same arrays, with running statistics and without dropout."""
    return nnx.view(module, use_running_average=True, deterministic=True, raise_if_not_found=False)
