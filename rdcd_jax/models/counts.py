"""How large a network is and how much it computes, measured from the network itself."""

import math

import jax
import numpy as np
from flax import nnx

from rdcd_jax.models.branches import reparameterised


def parameter_count(module: nnx.Module) -> int:
    """How many numbers a network learns; it may be abstract."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def multiply_adds(module: nnx.Module, image_size: int) -> int:
    """Multiply-adds of the convolutions and matrix products for one image, in the form for inference.

    Args:
        module: a network of `models.build`; it may be abstract, and stays as it is.
        image_size: side of the image.

    Returns:
        The number; what acts on one number at a time (norms, activations, pooling) is left out, as is usual.
    """
    module = nnx.view(
        module, use_running_average=True, deterministic=True, raise_if_not_found=False
    )
    # Merging branches needs numbers; any will do.
    module = nnx.clone(module)
    learned = nnx.state(module, (nnx.Param, nnx.BatchStat))
    nnx.update(module, jax.tree.map(lambda x: np.broadcast_to(np.float32(1), x.shape), learned))
    graph, state = nnx.split(reparameterised(module))
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.float32)
    program = jax.make_jaxpr(lambda state, x: nnx.merge(graph, state)(x))(nnx.as_pure(state), image)
    return _multiply_adds(program)


def _multiply_adds(program) -> int:
    """The multiply-adds of a jaxpr and of those within it."""
    total = 0
    for step in program.eqns:
        inner = [
            _multiply_adds(each)
            for value in step.params.values()
            for each in (value if isinstance(value, tuple | list) else (value,))
            if hasattr(each, "eqns")
        ]
        name = step.primitive.name
        if name == "dot_general":
            summed = step.params["dimension_numbers"][0][0]
            shape = step.invars[0].aval.shape
            total += step.outvars[0].aval.size * math.prod(shape[axis] for axis in summed)
        elif name == "conv_general_dilated":
            kernel = step.invars[1].aval
            outputs = kernel.shape[step.params["dimension_numbers"].rhs_spec[0]]
            total += step.outvars[0].aval.size * kernel.size // outputs
        elif name == "cond":
            # One convolution in its forms for different devices, the last of which is the plain one.
            total += inner[-1]
        else:
            total += step.params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)
    return total
