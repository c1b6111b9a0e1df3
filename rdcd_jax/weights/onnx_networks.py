"""Each network as an ONNX graph. A new trunk is one function and one line of `TRUNKS`."""

from collections.abc import Callable

import jax
import numpy as np
import onnx
from flax import nnx

from rdcd_jax.core.errors import UserError
from rdcd_jax.models import efficientnet, mobilenet
from rdcd_jax.models.branches import reparameterised
from rdcd_jax.models.efficientnet import EfficientNetB0
from rdcd_jax.models.fastvit import FastViTT12, MobileOne
from rdcd_jax.models.layers import ConvNorm, SqueezeExcite, gelu
from rdcd_jax.models.mobilenet import MobileNetV3Large
from rdcd_jax.models.resnet import Bottleneck, ResNet
from rdcd_jax.weights.model import Model
from rdcd_jax.weights.onnx_graph import Graph

ACTIVATIONS = {
    None: lambda graph, x: x,
    jax.nn.relu: Graph.relu,
    jax.nn.silu: Graph.silu,
    jax.nn.hard_swish: Graph.hard_swish,
    jax.nn.sigmoid: Graph.sigmoid,
    jax.nn.hard_sigmoid: Graph.hard_sigmoid,
    gelu: Graph.gelu,
}


def onnx_network(model: Model, *, half: bool = False) -> onnx.ModelProto:
    """A model as an ONNX file.

    Args:
        model: what to write.
        half: the trunk's weights and activations are float16.

    Returns:
        A graph of one input, `pictures` uint8 [B, H, W, 3] for any B, H and W, and one output, `descriptors` float32
        [B, D] of unit length. Its metadata name the model and the size of images that it is best given.

    Raises:
        UserError: for a network without a line in `TRUNKS`.
    """
    if model.network not in TRUNKS:
        raise UserError(
            f"The network '{model.network}' has no ONNX form here; those that have are {', '.join(TRUNKS)}."
        )
    graph = Graph(np.float16 if half else np.float32)
    feature = TRUNKS[model.network](graph, model.module.backbone, graph.pixels("pictures"))
    projector = model.module.projector
    descriptor = feature if projector is None else graph.linear(feature, projector)
    metadata = {"name": model.name, "image_size": str(model.image_size)}
    return graph.model(graph.unit(descriptor), model.dim, metadata)


def efficientnet_b0(graph: Graph, trunk: EfficientNetB0, x: str) -> str:
    """Pixels [B, 3, H, W] to features [B, F]."""
    first, *blocks = (block for stage in trunk.stages for block in stage)
    # In 8 bits these two cost more than all others together.
    with graph.precise():
        x = _inverted_residual(graph, first, _conv_norm(graph, trunk.stem, x))
    for block in blocks:
        x = _inverted_residual(graph, block, x)
    return graph.linear(graph.gem_pool(_conv_norm(graph, trunk.last, x)), trunk.head)


def mobilenet_v3_large(graph: Graph, trunk: MobileNetV3Large, x: str) -> str:
    """Pixels [B, 3, H, W] to features [B, F]."""
    first, *blocks = trunk.blocks
    with graph.precise():
        x = _mobile(graph, first, _conv_norm(graph, trunk.stem, x))
    for block in blocks:
        x = _mobile(graph, block, x)
    pooled = graph.gem_pool(_conv_norm(graph, trunk.last, x))
    with graph.precise():
        hidden = graph.hard_swish(graph.linear(pooled, trunk.hidden))
    return graph.linear(hidden, trunk.head)


def fastvit_t12(graph: Graph, trunk: FastViTT12, x: str) -> str:
    """Pixels [B, 3, H, W] to features [B, F]."""
    trunk = _filter_by_filter(reparameterised(trunk))
    with graph.precise():
        for layer in trunk.stem:
            x = _mobile_one(graph, layer, x)
    for number, stage in enumerate(trunk.stages):
        if number > 0:
            down = trunk.downsamples[number - 1]
            x = _mobile_one(graph, down.mix, graph.filter_by_filter(x, down.wide))
        for block in stage:
            x = graph.conv(x, block.mixer)
            y = graph.gelu(graph.conv(_conv_norm(graph, block.conv, x), block.expand))
            x = graph.add(x, graph.conv(y, block.project, factor=block.scale.gamma[...]))
    x = _squeeze_excite(graph, trunk.last.squeeze, graph.filter_by_filter(x, trunk.last.branches))
    return graph.linear(graph.gem_pool(graph.gelu(x)), trunk.head)


def resnet(graph: Graph, trunk: ResNet, x: str) -> str:
    """Pixels [B, 3, H, W] to features [B, F]."""
    x = graph.relu(graph.conv(x, trunk.conv1, trunk.bn1))
    x = graph.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for layer in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4):
        for block in layer:
            x = _bottleneck(graph, block, x)
    return graph.linear(graph.gem_pool(x), trunk.fc)


TRUNKS: dict[str, Callable[[Graph, nnx.Module, str], str]] = {
    "efficientnet_b0": efficientnet_b0,
    "fastvit_t12": fastvit_t12,
    "mobilenet_v3_large": mobilenet_v3_large,
    "resnet50": resnet,
    "resnext101_32x4d": resnet,
}


def _activated(graph: Graph, activation: Callable | None, x: str) -> str:
    return ACTIVATIONS[activation](graph, x)


def _conv_norm(graph: Graph, layer: ConvNorm, x: str) -> str:
    return _activated(graph, layer.activation, graph.conv(x, layer.conv, layer.norm))


def _squeeze_excite(graph: Graph, layer: SqueezeExcite, x: str) -> str:
    pooled = graph.node("GlobalAveragePool", x)
    reduced = _activated(graph, layer.activation, graph.conv(pooled, layer.reduce))
    return graph.gated(x, _activated(graph, layer.gate, graph.conv(reduced, layer.expand)))


def _inverted_residual(graph: Graph, block: efficientnet.InvertedResidual, x: str) -> str:
    y = x if block.expand is None else _conv_norm(graph, block.expand, x)
    y = _squeeze_excite(graph, block.squeeze, _conv_norm(graph, block.depthwise, y))
    y = _conv_norm(graph, block.project, y)
    return y if block.drop is None else graph.add(x, y)


def _mobile(graph: Graph, block: mobilenet.InvertedResidual, x: str) -> str:
    y = x if block.expand is None else _conv_norm(graph, block.expand, x)
    y = _conv_norm(graph, block.depthwise, y)
    y = y if block.squeeze is None else _squeeze_excite(graph, block.squeeze, y)
    y = _conv_norm(graph, block.project, y)
    return graph.add(x, y) if block.residual else y


def _mobile_one(graph: Graph, layer: MobileOne, x: str) -> str:
    return graph.gelu(graph.conv(x, layer.branches))


def _filter_by_filter(trunk: FastViTT12) -> FastViTT12:
    """A copy whose weights expect the channels after two filters each in the order of `Graph.filter_by_filter`."""
    trunk = nnx.clone(trunk)
    squeeze = trunk.last.squeeze
    for weights, axis in (
        *((down.mix.branches.kernel, 2) for down in trunk.downsamples),
        (squeeze.reduce.kernel, 2),
        (squeeze.expand.kernel, 3),
        (squeeze.expand.bias, 0),
        (trunk.head.kernel, 0),
    ):
        array = np.asarray(weights[...])
        order = np.arange(array.shape[axis]).reshape(-1, 2).T.ravel()
        weights[...] = np.take(array, order, axis)
    return trunk


def _bottleneck(graph: Graph, block: Bottleneck, x: str) -> str:
    y = graph.relu(graph.conv(x, block.conv1, block.bn1))
    y = graph.relu(graph.conv(y, block.conv2, block.bn2))
    y = graph.conv(y, block.conv3, block.bn3)
    if block.downsample_conv is not None:
        x = graph.conv(x, block.downsample_conv, block.downsample_bn)
    return graph.relu(graph.add(x, y))
