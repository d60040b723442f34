"""The kernels of backend "torch": plain PyTorch operators, on every device, without autograd.

On a CPU the forward convolution goes through oneDNN's convolution with a leaky-ReLU
post-operation, which has no autograd of its own and so stands inside our Functions, where it
supports the case and gains.
"""

from __future__ import annotations

from . import cpu_matrix_product, torch_convolution
from .routing import CONVOLUTIONS, PASSES, offer
from .torch_bias_leaky_relu import TorchBiasLeakyReLU, TorchMask
from .torch_reparameterize import TorchReparameterize

PLAIN = "plain PyTorch"

for _pass, (_run, _fits) in cpu_matrix_product.PRODUCTS.items():
    offer("matrix product (PyTorch)", ["torch"], CONVOLUTIONS, [_pass], _run, fits=_fits,
          when="kernels as large as the picture")  # fmt: skip
for _pass, _run in torch_convolution.PASSES.items():
    offer(PLAIN, ["torch"], CONVOLUTIONS, [_pass], _run, narrow=torch_convolution.WAYS[_pass])
for _pass in ("mask", "mask_sum"):
    offer(PLAIN, ["torch"], CONVOLUTIONS, [_pass], getattr(TorchMask, _pass))
for _operation, _kernels in (
    ("bias_leaky_relu", TorchBiasLeakyReLU),
    ("reparameterize", TorchReparameterize),
):
    for _pass in PASSES[_operation]:
        offer(PLAIN, ["torch"], [_operation], [_pass], getattr(_kernels, _pass))
