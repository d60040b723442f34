"""A model that exists already, made fast in one line: `fastgen.accelerate(model)`.

Two kinds of change, both undone by `fastgen.restore(model)`:

**Exchange.** A convolution or an activation computes what it did, through `fastgen.ops`: the same
output for the same input, the second order without what PyTorch computes in vain. That needs no
knowledge of the network around it, so it is right however the layer is used: shared, hooked,
parametrized, called from anywhere.

**Fusion.** A convolution takes in the activation behind it. Only the caller knows what is behind:
`nn.Sequential`, whose forward is known, or a forward of the user's own that `torch.fx` traces and
that has no branches. The caller asks the convolution for the activation, call by call; the
convolution itself stays a convolution.

Both are made by exchanging a module's class, as `torch.nn.utils.parametrize` does. The module stays
the same object: parameters, buffers, hooks, attributes, names and state_dict are untouched.
"""

from .accelerate import accelerate
from .report import Report, Row
from .restore import restore

__all__ = ["Report", "Row", "accelerate", "restore"]
