"""`fastgen.accelerate`: what to replace in a model is surveyed first, then done."""

from __future__ import annotations

from torch import nn

from .classes import exchange, is_accelerated, original_class, subclass_of
from .layers import LAYERS
from .layouts import to_channels_last, to_original
from .obstacles import TWO_DIMENSIONAL, refuse
from .report import Report
from .restore import undo
from .survey import Survey


def accelerate(
    model: nn.Module,
    channels_last: bool = True,
    dry_run: bool = False,
    fold_batchnorm: bool = False,
    *,
    verbose: bool = True,
) -> Report:
    r"""Let a model that exists compute by fastgen's operations; the model stays the same object.

    * Every `Conv2d` and `ConvTranspose2d`, every `ReLU`, `LeakyReLU` and two-dimensional pooling
      computes the same with a second order that costs what it must: there PyTorch wastes time. The
      functions of the same names are replaced while a forward that mentions them runs.
    * A layer (`Linear` too) takes in the activation behind it: in `nn.Sequential`, and in a forward
      without branches that `torch.fx` traces, if nothing else reads what lies between. A transposed
      convolution takes in `Tanh` as well.

    Outputs and gradients to the second order are the original's within rounding; gradients that are
    zero everywhere, such as a penalty's in biases, are None, and `torch.autograd.grad` wants
    ``allow_unused=True`` for them.

    Nothing of the model changes but classes and memory formats: parameters (the same objects, so
    optimizers keep working), buffers, hooks, attributes, names, state_dict, flags; it can be copied
    and pickled. A layer with a hook on its output takes no activation in, and one that a caller
    uses on its own still returns its own output.

    Args:
        model: changed in place. Accelerate it before DistributedDataParallel or `torch.compile`.
        channels_last: keep the weights of replaced convolutions in channels_last, so that they
            answer in it whatever layout the images have. `tensor.view` in a forward of the user's
            that does not fit this layout copies, as `reshape` does. What optimizers remember of the
            weights is moved before their next step. In a model on a CPU with an `InstanceNorm2d` or
            a `LayerNorm` of whole maps, (C, H, W), which answer in contiguous memory, they stay as
            they are.
        dry_run: change nothing; return the report of what would be.
        fold_batchnorm: fold each `BatchNorm2d` that stands in evaluation mode directly behind a
            convolution into it. Parameters and statistics stay as they are. The folded weights are
            computed with gradients where gradients are recorded; else they are kept until a
            parameter changes, which a write through ``.data`` hides: call `model.train()` and
            `model.eval()` after one. In training mode the layer is a convolution and its
            normalization again.
        verbose: print the report.

    Returns:
        what was replaced, what was left and why; :class:`fastgen.acceleration.Report`.

    Raises:
        TypeError: `model` is no module, or wrapped (DistributedDataParallel, torch.compile, ...);
            the message says what to do.

    Accelerating again updates what has changed. :func:`fastgen.restore` undoes all of it.

    Example::

        fastgen.accelerate(critic)
    """
    refuse(model)
    survey = Survey(model, fold=fold_batchnorm, channels_last=channels_last)
    if not dry_run:
        _forget_stale(survey)
        for module in survey.exchanged:
            exchange(module, subclass_of(original_class(module)))
            if isinstance(module, TWO_DIMENSIONAL):
                (to_channels_last if survey.channels_last else to_original)(module)
            elif not isinstance(module, tuple(LAYERS)):
                module.__dict__["_accelerated_fold"] = fold_batchnorm
                module.__dict__["_accelerated_plan"] = survey.plans.get(id(module), {})
    report = Report(
        replaced=[row for row in survey.rows if row.became],
        left=[row for row in survey.rows if not row.became],
        dry_run=dry_run,
    )
    if verbose:
        print(report)
    return report


def _forget_stale(survey: Survey) -> None:
    """What an earlier call did to a module that is not to be changed any more."""
    kept = {id(module) for module in survey.exchanged}
    for module in survey.modules.values():
        if is_accelerated(module) and id(module) not in kept:
            undo(module)
