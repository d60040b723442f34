"""Reads beyond a tensor, on purpose: `make sanitize` has to find it."""

import torch

from fastgen.ops import compiled

compiled.build_information()
x = torch.randn(1, 4, 64, 64)
x.untyped_storage().resize_(512)
torch.ops.fastgen.bias_leaky_relu(x, None, 0.2)
