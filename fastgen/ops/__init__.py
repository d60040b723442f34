"""The operations: fused, differentiable to any order, on every backend that is there.

Each has a twin of the same name in `fastgen.ops.reference`, a plain composition of PyTorch
functions.
"""

from contextlib import suppress

from . import compiled, compiled_kernels, cpu_kernels, reference, torch_kernels, triton_kernels
from .backend import BackendUnavailable
from .bias_leaky_relu import bias_leaky_relu
from .conv2d_bias_leaky_relu import conv2d_bias_leaky_relu
from .conv_transpose2d_bias_leaky_relu import conv_transpose2d_bias_leaky_relu
from .reparameterize import reparameterize, reparameterize_kl

__all__ = [
    "BackendUnavailable",
    "bias_leaky_relu",
    "conv2d_bias_leaky_relu",
    "conv_transpose2d_bias_leaky_relu",
    "reference",
    "reparameterize",
    "reparameterize_kl",
]

# Programs of torch.export that hold the compiled operators are loaded by their names. A variable
# with a wrong value is told when an operation is called.
with suppress(ValueError):
    compiled.missing("cpu")

del compiled_kernels, cpu_kernels, torch_kernels, triton_kernels  # imported to enter their kernels
del suppress
