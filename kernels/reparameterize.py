"""The VAE's reparameterization in one pass: noise made in registers, the divergence beside it.

    reparameterize           z = mu + exp(logvar / 2) eps(seed)
    reparameterize_kl        z and kl = 1/2 sum(mu^2 + exp(logvar) - 1 - logvar) per sample
    reparameterize_backward  both gradients, from both incoming ones
    scaled_noise             scale exp(logvar / 2) eps(seed)

Four elements in a row share one evaluation of Philox: a tile is BLOCK_R rows of BLOCK_K counters,
4 BLOCK_K elements. A row is a sample, or, in channels_last memory, the pixels of one channel of one
sample, next to which the other channels lie: eps belongs to the index in the shape, not in memory.
A row need not begin at a multiple of four; its first counter is then shared with the row before.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compilation import compilation
from .formulas import expm1, kl_term, normals
from .launching import launch
from .registration import operator
from .sums import DTYPES, INDICES, LARGEST_INT32, add_partials, ceil_div

WARPS = 4
LONG = (1, 512)
TILES = ((128, 4), (32, 16), (8, 64), LONG)  # (rows, counters): 2048 elements, 16 a thread
PLANE_TILES = ((32, 16), (8, 64))  # rows are channels, which lie side by side


@triton.jit
def tile_of(
    rows,
    columns,
    planes,
    COUNTERS: tl.constexpr,
    PLANES: tl.constexpr,
    ALIGNED: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """(samples, offset of each row in its sample, counters, offsets of elements in a row, mask)."""
    column_tiles = tl.cdiv(columns + (0 if ALIGNED else 3), 4 * COUNTERS)
    program = tl.program_id(0)
    across = program % column_tiles
    down = program // column_tiles
    if PLANES:
        row_tiles = tl.cdiv(planes, BLOCK_R)
        sample = (down // row_tiles + tl.zeros((BLOCK_R,), tl.int32)).to(INDEX)
        plane = down % row_tiles * BLOCK_R + tl.arange(0, BLOCK_R)
        inside = plane < planes
        start = (sample * planes + plane) * columns
    else:
        sample = down.to(INDEX) * BLOCK_R + tl.arange(0, BLOCK_R)
        plane = tl.zeros((BLOCK_R,), tl.int32)
        inside = sample < rows
        start = sample * columns
    counter = across.to(INDEX) * COUNTERS + tl.arange(0, COUNTERS)
    element = across.to(INDEX) * (4 * COUNTERS) + tl.arange(0, 4 * COUNTERS)
    counters = (start // 4)[:, None] + counter[None, :]
    if ALIGNED:
        elements = tl.broadcast_to(element[None, :], (BLOCK_R, 4 * COUNTERS))
        mask = inside[:, None] & (element < columns)[None, :]
    else:
        elements = element[None, :] - (start % 4)[:, None]
        mask = inside[:, None] & (elements >= 0) & (elements < columns)
    return sample, plane, counters, elements, mask


@triton.jit(do_not_specialize=["rows"])
def reparameterize_kernel(
    first,
    logvar,
    seed,
    result,
    partial,
    rows,
    columns,
    planes,
    first_stride,
    logvar_stride,
    SCALED: tl.constexpr,
    PLANES: tl.constexpr,
    ALIGNED: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """result = first + exp(logvar / 2) eps, or first exp(logvar / 2) eps if SCALED.

    With `partial`, also the sum of the KL terms: per row of the tile, or per tile of PLANES.
    """
    sample, plane, counters, elements, mask = tile_of(
        rows, columns, planes, BLOCK_K, PLANES, ALIGNED, INDEX, BLOCK_R
    )
    step = planes if PLANES else 1
    within = plane[:, None] + elements * step
    x = tl.load(first + sample[:, None] * first_stride + within, mask=mask, other=0.0)
    x = x.to(tl.float32)
    lv = tl.load(logvar + sample[:, None] * logvar_stride + within, mask=mask, other=0.0)
    lv = lv.to(tl.float32)

    # The sums first: their terms leave the registers before the noise needs them.
    if partial is not None:
        terms = tl.sum(tl.where(mask, kl_term(x, lv), 0.0), 1)
        if PLANES:
            tl.store(partial + tl.program_id(0), tl.sum(terms, 0))
        else:
            column_tiles = tl.cdiv(columns + (0 if ALIGNED else 3), 4 * BLOCK_K)
            across = tl.program_id(0) % column_tiles
            tl.store(partial + sample * column_tiles + across, terms, mask=sample < rows)

    noise = tl.exp(0.5 * lv) * normals(tl.load(seed), counters)
    z = x * noise if SCALED else x + noise
    target = result + sample[:, None] * (columns * step) + within
    tl.store(target, z.to(result.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def reparameterize_backward_kernel(
    grad_z,
    grad_kl,
    mu,
    logvar,
    seed,
    grad_mu,
    grad_logvar,
    rows,
    columns,
    planes,
    grad_stride,
    mu_stride,
    logvar_stride,
    PLANES: tl.constexpr,
    ALIGNED: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The gradients of z and kl, whichever are there, taken to mu and logvar; eps is made again."""
    sample, plane, counters, elements, mask = tile_of(
        rows, columns, planes, BLOCK_K, PLANES, ALIGNED, INDEX, BLOCK_R
    )
    step = planes if PLANES else 1
    within = plane[:, None] + elements * step
    lv = tl.load(logvar + sample[:, None] * logvar_stride + within, mask=mask, other=0.0)
    lv = lv.to(tl.float32)

    through_mu = tl.zeros((BLOCK_R, 4 * BLOCK_K), tl.float32)
    through_logvar = tl.zeros((BLOCK_R, 4 * BLOCK_K), tl.float32)
    if grad_z is not None:
        gz = tl.load(grad_z + sample[:, None] * grad_stride + within, mask=mask, other=0.0)
        through_mu = gz.to(tl.float32)
        through_logvar = through_mu * tl.exp(0.5 * lv) * normals(tl.load(seed), counters)
    if grad_kl is not None:
        gkl = tl.load(grad_kl + sample, mask=sample < rows, other=0.0).to(tl.float32)[:, None]
        x = tl.load(mu + sample[:, None] * mu_stride + within, mask=mask, other=0.0)
        through_mu += gkl * x.to(tl.float32)
        through_logvar += gkl * expm1(lv)
    target = sample[:, None] * (columns * step) + within
    tl.store(grad_mu + target, through_mu.to(grad_mu.dtype.element_ty), mask=mask)
    halved = 0.5 * through_logvar
    tl.store(grad_logvar + target, halved.to(grad_logvar.dtype.element_ty), mask=mask)


class Shape(NamedTuple):
    """Tensors as rows: `rows` samples of `planes` rows (0: of one) of `columns` numbers."""

    rows: int
    planes: int
    columns: int

    @property
    def aligned(self) -> bool:
        return self.columns % 4 == 0 or (self.rows == 1 and self.planes == 0)

    @property
    def counters(self) -> int:
        return ceil_div(self.columns + (0 if self.aligned else 3), 4)

    def tile(self) -> tuple[int, int]:
        """The tile that leaves the fewest elements idle."""
        tiles = PLANE_TILES if self.planes else TILES
        return min(tiles, key=self._programs)

    def _programs(self, tile: tuple[int, int]) -> int:
        down = ceil_div(self.planes, tile[0]) * self.rows if self.planes else self.rows
        return ceil_div(down, 1 if self.planes else tile[0]) * ceil_div(self.counters, tile[1])


def _in_rows(tensor: Tensor) -> bool:
    """Whether each sample is contiguous, as in a tensor or in a half of a chunked one."""
    if tensor.is_contiguous():
        return True
    return tensor.dim() > 1 and tensor.numel() > 0 and tensor.select(0, 0).is_contiguous()


def _in_planes(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _shape(tensors: list[Tensor], per_sample: bool) -> Shape | None:
    """How tensors of one shape are cut; None where they do not lie alike."""
    shape = tensors[0].shape
    if not per_sample and all(t.is_contiguous() for t in tensors):
        return Shape(1, 0, tensors[0].numel())
    if all(map(_in_rows, tensors)):
        return Shape(shape[0] if shape else 1, 0, math.prod(shape[1:]))
    if all(map(_in_planes, tensors)):
        return Shape(shape[0], shape[1], math.prod(shape[2:]))
    return None


def _check(mu: Tensor, logvar: Tensor, seed: Tensor, **others: Tensor | None) -> None:
    if mu.dtype not in DTYPES:
        raise TypeError(f"mu must be float32, bfloat16 or float16 (got {mu.dtype})")
    for name, tensor in (("logvar", logvar), *others.items()):
        if tensor is not None and (tensor.shape, tensor.dtype, tensor.device) != (
            mu.shape,
            mu.dtype,
            mu.device,
        ):
            raise ValueError(
                f"{name} must be {mu.dtype} of shape {tuple(mu.shape)} on {mu.device}, as mu is "
                f"(got {tensor.dtype}, {tuple(tensor.shape)}, {tensor.device})"
            )
    if seed.dtype != torch.int64 or seed.numel() != 1 or seed.device != mu.device:
        raise ValueError(
            f"seed must be a 0-dim int64 tensor on {mu.device} "
            f"(got {seed.dtype}, {tuple(seed.shape)}, {seed.device})"
        )


def _stride(tensor: Tensor, shape: Shape) -> int:
    return tensor.stride(0) if shape.rows > 1 else 0


def _constants(shape: Shape, tensors: list[Tensor]) -> tuple[int, dict[str, Any]]:
    """The number of programs and the compile-time arguments."""
    block_r, block_k = shape.tile()
    furthest = max(_stride(t, shape) * shape.rows for t in tensors)
    covered = shape.rows * max(shape.planes, 1) * shape.columns
    # Idle elements of the last tile have offsets too.
    margin = (block_r + 1) * max(shape.planes, 1) * (shape.columns + 4 * block_k)
    return shape._programs((block_r, block_k)), dict(
        PLANES=shape.planes > 0,
        ALIGNED=shape.aligned,
        INDEX=INDICES[max(furthest, covered) + margin > LARGEST_INT32],
        BLOCK_R=block_r,
        BLOCK_K=block_k,
        num_warps=WARPS,
        num_stages=1,
    )


def _noise(
    first: Tensor, logvar: Tensor, seed: Tensor, *, scaled: bool = False, kl: bool = False
) -> tuple[Tensor, Tensor | None]:
    _check(first, logvar, seed)
    result = torch.empty_like(first)
    if first.numel() == 0:
        return result, first.new_zeros(first.shape[:1], dtype=torch.float32) if kl else None
    shape = _shape([first, logvar, result], kl)
    if shape is None:
        dense, total = _noise(first.contiguous(), logvar.contiguous(), seed, scaled=scaled, kl=kl)
        return result.copy_(dense), total
    programs, constants = _constants(shape, [first, logvar])
    partial = first.new_empty(0, dtype=torch.float32) if kl else None
    if partial is not None:
        across = ceil_div(shape.counters, constants["BLOCK_K"])
        per_sample = programs // shape.rows if shape.planes else across
        partial = partial.new_empty(shape.rows * per_sample)
    launch(
        reparameterize_kernel,
        (programs,),
        first,
        logvar,
        seed,
        result,
        partial,
        shape.rows,
        shape.columns,
        shape.planes,
        _stride(first, shape),
        _stride(logvar, shape),
        SCALED=scaled,
        **constants,
    )
    if partial is None:
        return result, None
    return result, add_partials(partial, 1, shape.rows, per_sample, torch.float32, 0.5)


def _like(first: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(first)


@operator("reparameterize(Tensor mu, Tensor logvar, Tensor seed) -> Tensor", fake=_like)
def reparameterize(mu: Tensor, logvar: Tensor, seed: Tensor) -> Tensor:
    """mu + exp(logvar / 2) eps(seed), in the layout of `mu`."""
    return _noise(mu, logvar, seed)[0]


def _fake_kl(mu: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mu), mu.new_empty(mu.shape[0], dtype=torch.float32)


@operator(
    "reparameterize_kl(Tensor mu, Tensor logvar, Tensor seed) -> (Tensor, Tensor)", fake=_fake_kl
)
def reparameterize_kl(mu: Tensor, logvar: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """z and the divergence of each sample (dimension 0) in nats, float32; deterministic."""
    z, kl = _noise(mu, logvar, seed, kl=True)
    assert kl is not None
    return z, kl


@operator("scaled_noise(Tensor scale, Tensor logvar, Tensor seed) -> Tensor", fake=_like)
def scaled_noise(scale: Tensor, logvar: Tensor, seed: Tensor) -> Tensor:
    """scale * exp(logvar / 2) * eps(seed), in the layout of `scale`."""
    return _noise(scale, logvar, seed, scaled=True)[0]


def _fake_backward(
    grad_z: Tensor | None, grad_kl: Tensor | None, mu: Tensor, logvar: Tensor, seed: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mu), torch.empty_like(mu)


@operator(
    "reparameterize_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, "
    "Tensor seed) -> (Tensor, Tensor)",
    fake=_fake_backward,
)
def reparameterize_backward(
    grad_z: Tensor | None, grad_kl: Tensor | None, mu: Tensor, logvar: Tensor, seed: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of mu and logvar, in the layout of `mu`, from those of z and kl.

    grad_mu = gz + gkl mu;  grad_logvar = gz exp(logvar / 2) eps / 2 + gkl expm1(logvar) / 2.
    """
    _check(mu, logvar, seed, grad_z=grad_z)
    grad_mu, grad_logvar = torch.empty_like(mu), torch.empty_like(mu)
    if mu.numel() == 0:
        return grad_mu, grad_logvar
    if grad_kl is not None and (grad_kl.shape != mu.shape[:1] or grad_kl.dtype != torch.float32):
        raise ValueError(
            f"grad_kl must be float32 of shape {tuple(mu.shape[:1])} "
            f"(got {grad_kl.dtype}, {tuple(grad_kl.shape)})"
        )
    given = [mu, logvar] if grad_z is None else [mu, logvar, grad_z]
    shape = _shape([*given, grad_mu], grad_kl is not None)
    if shape is None:
        dense = reparameterize_backward(
            None if grad_z is None else grad_z.contiguous(),
            grad_kl,
            mu.contiguous(),
            logvar.contiguous(),
            seed,
        )
        return grad_mu.copy_(dense[0]), grad_logvar.copy_(dense[1])
    programs, constants = _constants(shape, given)
    launch(
        reparameterize_backward_kernel,
        (programs,),
        grad_z,
        None if grad_kl is None else grad_kl.contiguous(),
        mu,
        logvar,
        seed,
        grad_mu,
        grad_logvar,
        shape.rows,
        shape.columns,
        shape.planes,
        0 if grad_z is None else _stride(grad_z, shape),
        _stride(mu, shape),
        _stride(logvar, shape),
        **constants,
    )
    return grad_mu, grad_logvar


def _compilations() -> Any:
    uses: dict[str, tuple[Any, dict[str, Any]]] = {
        "forward": (reparameterize_kernel, {"partial": None, "SCALED": False}),
        "forward kl": (reparameterize_kernel, {"SCALED": False}),
        "scaled noise": (reparameterize_kernel, {"partial": None, "SCALED": True}),
        "backward": (reparameterize_backward_kernel, {}),
        "backward of z": (reparameterize_backward_kernel, {"grad_kl": None}),
        "backward of kl": (reparameterize_backward_kernel, {"grad_z": None}),
    }
    pointers = ("first", "result", "grad_z", "mu", "logvar", "grad_mu", "grad_logvar")
    cuts = [(tile, False, True) for tile in TILES]
    cuts += [(tile, True, True) for tile in PLANE_TILES]
    cuts += [((32, 16), False, False), ((32, 16), True, False)]
    for dtype, pointer in (("float32", "*fp32"), ("bfloat16", "*bf16"), ("float16", "*fp16")):
        types = dict.fromkeys(pointers, pointer)
        types |= {"partial": "*fp32", "grad_kl": "*fp32", "seed": "*i64"}
        for use, (kernel, absent) in uses.items():
            for tile, planes, aligned in cuts:
                # float16 takes the same code as bfloat16: one tile stands for it.
                if dtype == "float16" and (tile, planes) != (LONG, False):
                    continue
                for wide in (False, True) if (tile, planes) == (LONG, False) else (False,):
                    shape = f"{'planes ' if planes else ''}{tile[0]}x{tile[1]}"
                    constexprs = absent | dict(
                        PLANES=planes, ALIGNED=aligned, INDEX=INDICES[wide],
                        BLOCK_R=tile[0], BLOCK_K=tile[1],
                    )  # fmt: skip
                    odd = {"rows"} if aligned else {"rows", "columns", "planes", "first_stride",
                        "logvar_stride", "mu_stride", "grad_stride"}  # fmt: skip
                    yield compilation(
                        f"reparameterize {use} {dtype} {shape}"
                        f"{' int64' if wide else ''}{'' if aligned else ' odd'}",
                        kernel,
                        types,
                        constexprs,
                        odd=odd,
                        num_warps=WARPS,
                        memory_bound=aligned,
                    )


COMPILATIONS = tuple(_compilations())
