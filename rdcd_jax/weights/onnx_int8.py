"""Networks in 8-bit integers for onnxruntime, their ranges measured on images."""

import logging
import pathlib
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper

from rdcd_jax.core.errors import UnreadableImageError, UserError
from rdcd_jax.images.decode import resize_square
from rdcd_jax.images.passed_over import find_all_images
from rdcd_jax.weights.model import Model
from rdcd_jax.weights.onnx_graph import PRECISE
from rdcd_jax.weights.onnx_networks import onnx_network

DEFAULT_IMAGES = "sample:train"
MOST_IMAGES = 32
# What onnxruntime has integer kernels for, so that images stay integers from the first of these to the last.
QUANTISED = ("Conv", "Sigmoid", "Mul", "Add", "GlobalAveragePool", "MaxPool", "Relu", "Concat")
# The rarest values, one in ten thousand at either end, are clipped; else the few would take the digits of the many.
PERCENT = 99.99
# x sigmoid(x) is within 0.015 of 0 below this, where the digits are better spent above.
SILU_IS_FLAT_BELOW = -6.0
# Values kept of each tensor for each image.
_KEPT = 5000

_log = logging.getLogger(__name__)


def onnx_int8(model: Model, range_images: str = DEFAULT_IMAGES) -> onnx.ModelProto:
    """A model as an ONNX file of quantised operators: weights int8 by channel, activations uint8 by tensor.

    Args:
        model: what to write.
        range_images: a source of images, of which at most `MOST_IMAGES` are used.

    Returns:
        A graph with the inputs and outputs of `onnx_network`.

    Raises:
        UserError: without onnxruntime, for a network without an ONNX form, or a source without readable images.
    """
    try:
        from onnxruntime import quantization
    except ImportError:
        raise UserError(
            "The format onnx-int8 needs onnxruntime; run `pip install onnxruntime`."
        ) from None

    network = onnx_network(model)
    nodes = [node for node in network.graph.node if not node.name.startswith(PRECISE)]
    images = _images(range_images, model.image_size)
    ranges = _ranges(network, [node for node in nodes if node.op_type in QUANTISED], images)

    class FirstImage(quantization.CalibrationDataReader):
        """The library wants to see one; the ranges are ours."""

        rest = iter([{"pictures": images[0]}])

        def get_next(self) -> dict | None:
            return next(self.rest, None)

    # The library's mark of a graph that is simplified already, as ours are; without it, it warns on stderr.
    network.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "int8.onnx"
        quantization.quantize_static(
            network,
            out,
            FirstImage(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=[
                node.name for node in network.graph.node if node.name.startswith(PRECISE)
            ],
            extra_options={
                "TensorQuantOverrides": {
                    name: [{"rmin": low, "rmax": high}] for name, (low, high) in ranges.items()
                }
            },
        )
        return onnx.load(out)


def _images(source: str, size: int) -> list[np.ndarray]:
    """Images evenly over the source, each uint8 [1, size, size, 3]."""
    images = find_all_images(source)
    count = min(MOST_IMAGES, len(images))
    found = []
    for position in (i * len(images) // count for i in range(count)):
        try:
            image = images.decode(position)
        except UnreadableImageError as error:
            _log.warning("%s: left out.", error)
            continue
        found.append(np.asarray(resize_square(image, size))[None])
    if not found:
        raise UserError(f"{source}: no image to measure ranges on can be read; give others.")
    return found


def _ranges(
    network: onnx.ModelProto, nodes: list[onnx.NodeProto], images: list[np.ndarray]
) -> dict[str, tuple[np.float32, np.float32]]:
    """The range of every tensor that goes into `nodes` or comes out of them, 0 within it."""
    import onnxruntime

    constants = {each.name for each in network.graph.initializer}
    names = {name: None for node in nodes for name in (*node.input, *node.output)}
    names = [name for name in names if name not in constants]
    seen = onnx.ModelProto()
    seen.CopyFrom(network)
    seen.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    session = onnxruntime.InferenceSession(
        seen.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    random = np.random.default_rng(0)
    kept = {name: [] for name in names}
    for image in images:
        for name, values in zip(names, session.run(names, {"pictures": image}), strict=True):
            kept[name].append(random.choice(values.ravel(), _KEPT))
    flat = {node.input[0] for node in nodes if node.op_type == "Sigmoid"}
    ranges = {}
    for name, values in kept.items():
        low, high = np.percentile(values, (100 - PERCENT, PERCENT))
        low = max(low, SILU_IS_FLAT_BELOW) if name in flat else low
        ranges[name] = np.float32(min(low, 0)), np.float32(max(high, 0))
    return ranges
