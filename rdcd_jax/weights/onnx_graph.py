"""The layers of the networks here as nodes of an ONNX graph, channels first, batch norms folded into convolutions."""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from flax import nnx
from onnx import TensorProto, helper, numpy_helper

from rdcd_jax.models.branches import affine
from rdcd_jax.models.descriptor import IMAGENET_MEAN, IMAGENET_STD

OPSET = 20
IR_VERSION = 9
# What the names of nodes start with that stay in float32 when a file is quantised.
PRECISE = "precise/"


class Graph:
    """A graph being written. Its methods add nodes and give the name of what these compute.

    Args:
        dtype: what the trunk computes in, float32 or float16; images, pooling, heads and norms are float32 always.
    """

    def __init__(self, dtype: type = np.float32):
        self.dtype = np.dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._prefix = ""

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        """Adds a node with one output."""
        name = f"{self._prefix}{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    @contextlib.contextmanager
    def precise(self) -> Iterator[None]:
        """Nodes added under this are named as such, and int8 files keep them in float32."""
        before, self._prefix = self._prefix, PRECISE
        try:
            yield
        finally:
            self._prefix = before

    def constant(self, array: object, dtype: object = np.float32) -> str:
        """Adds a constant."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(array, dtype)
        return name

    def pixels(self, images: str) -> str:
        """uint8 [B, H, W, 3] to [B, 3, H, W] in the trunk's type, by ImageNet's mean and deviation."""
        mean, std = (np.reshape(v, (3, 1, 1)) * 255 for v in (IMAGENET_MEAN, IMAGENET_STD))
        with self.precise():
            x = self.node("Transpose", images, perm=[0, 3, 1, 2])
            x = self.node("Sub", self.node("Cast", x, to=TensorProto.FLOAT), self.constant(mean))
            return self._cast(self.node("Mul", x, self.constant(1 / std)), self.dtype)

    def conv(
        self,
        x: str,
        layer: nnx.Conv,
        norm: nnx.BatchNorm | None = None,
        factor: np.ndarray | None = None,
    ) -> str:
        """A convolution, with the batch norm or the factor [O] of each channel that follows it."""
        kernel = np.asarray(layer.kernel[...], np.float64).transpose(3, 2, 0, 1)
        bias = None if layer.bias is None else np.asarray(layer.bias[...], np.float64)
        if norm is not None or factor is not None:
            scale, shift = affine(norm) if factor is None else (np.float64(factor), 0.0)
            kernel = kernel * scale[:, None, None, None]
            bias = shift if bias is None else shift + bias * scale
        return self.conv_of(
            x,
            kernel,
            bias,
            strides=layer.strides,
            padding=layer.padding,
            groups=layer.feature_group_count,
        )

    def conv_of(
        self,
        x: str,
        kernel: np.ndarray,
        bias: np.ndarray | None,
        *,
        strides: int | Sequence[int] = 1,
        padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
        groups: int = 1,
    ) -> str:
        """A convolution with a kernel [O, I / groups, KH, KW]; padding is (low, high) of height and width."""
        weights = [kernel] if bias is None else [kernel, bias]
        (top, bottom), (left, right) = padding
        return self.node(
            "Conv",
            x,
            *(self.constant(array, self.dtype) for array in weights),
            kernel_shape=list(kernel.shape[2:]),
            strides=np.broadcast_to(strides, 2).tolist(),
            pads=[top, left, bottom, right],
            group=groups,
        )

    def filter_by_filter(self, x: str, layer: nnx.Conv) -> str:
        """A depthwise convolution of several filters a channel: all channels' first filter, then all their second.

        As one convolution, each channel's side by side, onnxruntime runs it ten times slower in integers.
        """
        kernel = np.asarray(layer.kernel[...], np.float64).transpose(3, 2, 0, 1)
        bias = np.asarray(layer.bias[...], np.float64)
        times = layer.out_features // layer.in_features
        settings = {"strides": layer.strides, "padding": layer.padding, "groups": layer.in_features}
        parts = [
            self.conv_of(x, kernel[start::times], bias[start::times], **settings)
            for start in range(times)
        ]
        return self.node("Concat", *parts, axis=1)

    def linear(self, x: str, layer: nnx.Linear) -> str:
        """A linear layer of rows [B, I] float32; its weights are kept in the trunk's type."""
        weights = [layer.kernel] if layer.bias is None else [layer.kernel, layer.bias]
        kept = (self.constant(leaf[...], self.dtype) for leaf in weights)
        return self.node("Gemm", x, *(self._cast(name, np.float32) for name in kept))

    def relu(self, x: str) -> str:
        """The larger of x and 0."""
        return self.node("Relu", x)

    def silu(self, x: str) -> str:
        """x sigmoid(x)."""
        return self.node("Mul", x, self.sigmoid(x))

    def sigmoid(self, x: str) -> str:
        """1 / (1 + exp(-x))."""
        return self.node("Sigmoid", x)

    def hard_sigmoid(self, x: str) -> str:
        """x / 6 + 1 / 2 within 0 and 1."""
        return self.node("HardSigmoid", x, alpha=1 / 6, beta=0.5)

    def hard_swish(self, x: str) -> str:
        """x times its hard sigmoid."""
        return self.node("HardSwish", x)

    def gelu(self, x: str) -> str:
        """x times the normal distribution's share below x."""
        return self.node("Gelu", x)

    def add(self, x: str, y: str) -> str:
        """x + y."""
        return self.node("Add", x, y)

    def gated(self, x: str, gates: str) -> str:
        """x [B, C, H, W] with each channel multiplied by its gate [B, C, 1, 1]."""
        return self.node("Mul", x, gates)

    def gem_pool(self, x: str, p: float = 3.0, floor: float = 1e-6) -> str:
        """`layers.gem_pool`: [B, C, H, W] to [B, C] float32. Cubes of small numbers need float32's exponent."""
        with self.precise():
            x = self.node("Clip", self._cast(x, np.float32), self.constant(floor))
            x = self.node("GlobalAveragePool", self.node("Pow", x, self.constant(p)))
            return self.node("Pow", self.node("Flatten", x), self.constant(1 / p))

    def unit(self, x: str, epsilon: float = 1e-12) -> str:
        """`layers.l2_normalize` of rows [B, D]."""
        length = self.node("ReduceL2", x, self.constant([1], np.int64), keepdims=1)
        return self.node("Div", x, self.node("Clip", length, self.constant(epsilon)))

    def model(self, descriptor: str, dim: int, metadata: dict[str, str]) -> onnx.ModelProto:
        """The file: `pictures` uint8 [B, H, W, 3] in, `descriptors` float32 [B, dim] out."""
        self.nodes.append(helper.make_node("Identity", [descriptor], ["descriptors"]))
        graph = helper.make_graph(
            self.nodes,
            "rdcd_jax",
            [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["B", "H", "W", 3])],
            [helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["B", dim])],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="rdcd_jax"
        )
        helper.set_model_props(model, metadata)
        return model

    def _cast(self, x: str, dtype: object) -> str:
        if self.dtype == np.float32:
            return x
        return self.node("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
