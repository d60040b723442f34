"""The WGAN-GP critic's step in JAX: `python -m fastgen.bench.jax_peer` prints seconds per step.

The networks, losses, optimizer and precision of `peers.critic_loss` and fastgen's Critic and
Generator, in JAX's own layout (NHWC, HWIO) and one jit for the whole step: noise, the generator's
pictures, the penalty differentiated twice, Adam. bfloat16: float32 weights, cast in the step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fastgen.models.pyramid import pyramid

from .steps import LATENTS, Step

SLOPE, RATE, BETA_1, BETA_2, EPSILON = 0.2, 2e-4, 0.5, 0.9, 1e-8


def build(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """(step, its state, its pictures)."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    dtype = jnp.bfloat16 if options.precision == "bfloat16" else jnp.float32
    plan = pyramid((3, options.size, options.size), options.width)
    channels, (top, _) = plan.channels, plan.top
    keys = iter(jax.random.split(jax.random.key(0), 64))
    layout = ("NHWC", "HWIO", "NHWC")

    def layer(fan_in: float, *shape: int) -> tuple[Any, Any]:
        scale = (2 / ((1 + SLOPE**2) * fan_in)) ** 0.5
        return scale * jax.random.normal(next(keys), shape), jnp.zeros(shape[-1])

    below = [3, *channels[:-1]]
    critic = [layer(16 * a, 4, 4, a, b) for a, b in zip(below, channels, strict=True)]
    critic.append(layer(channels[-1] * top**2, channels[-1] * top**2, 1))
    generator = [layer(options.latents, options.latents, channels[-1] * top**2)]
    pairs = zip(reversed(channels), reversed(below), strict=True)
    generator += [layer(4 * a, 4, 4, a, b) for a, b in pairs]

    def leaky(x: Any) -> Any:
        return jnp.where(x > 0, x, SLOPE * x)

    def score(weights: Any, x: Any) -> Any:
        x = x.astype(dtype)
        for w, b in weights[:-1]:
            x = lax.conv_general_dilated(
                x, w.astype(dtype), (2, 2), ((1, 1), (1, 1)), dimension_numbers=layout
            )
            x = leaky(x + b.astype(dtype))
        w, b = weights[-1]
        return (x.reshape(len(x), -1) @ w.astype(dtype) + b.astype(dtype)).astype(jnp.float32)[:, 0]

    def draw(weights: Any, z: Any) -> Any:
        w, b = weights[0]
        x = leaky(z.astype(dtype) @ w.astype(dtype) + b.astype(dtype))
        x = x.reshape(len(z), top, top, channels[-1])
        for place, (w, b) in enumerate(weights[1:], start=2):
            # A transposed 4x4 convolution of stride 2 and padding 1.
            x = lax.conv_general_dilated(
                x, w.astype(dtype), (1, 1), ((2, 2), (2, 2)), (2, 2), dimension_numbers=layout
            )
            x = x + b.astype(dtype)
            x = jnp.tanh(x) if place == len(weights) else leaky(x)
        return x.astype(jnp.float32)

    def loss(weights: Any, x: Any, z: Any, u: Any) -> Any:
        fake = lax.stop_gradient(draw(generator, z))
        between = fake + u * (x - fake)
        slope = jax.grad(lambda images: score(weights, images).sum())(between)
        lengths = jnp.sqrt(jnp.square(slope).sum((1, 2, 3)))
        gap = score(weights, x).mean() - score(weights, fake).mean()
        return 10 * jnp.square(lengths - 1).mean() - gap

    def step(state: Any, x: Any) -> Any:
        weights, first, second, count, key = state
        key, for_z, for_u = jax.random.split(key, 3)
        z = jax.random.normal(for_z, (len(x), options.latents))
        u = jax.random.uniform(for_u, (len(x), 1, 1, 1))
        gradient = jax.grad(loss)(weights, x, z, u)
        count = count + 1
        tree = jax.tree_util.tree_map
        first = tree(lambda m, g: BETA_1 * m + (1 - BETA_1) * g, first, gradient)
        second = tree(lambda v, g: BETA_2 * v + (1 - BETA_2) * g * g, second, gradient)

        def moved(w: Any, m: Any, v: Any) -> Any:
            root = jnp.sqrt(v / (1 - BETA_2**count)) + EPSILON
            return w - RATE * m / (1 - BETA_1**count) / root

        return tree(moved, weights, first, second), first, second, count, key

    zeros = jax.tree_util.tree_map(jnp.zeros_like, critic)
    copies = jax.tree_util.tree_map(jnp.copy, zeros)
    shape = (options.batch, options.size, options.size, 3)
    images = 2 * jax.random.uniform(next(keys), shape) - 1
    state = critic, zeros, copies, jnp.zeros(()), jax.random.key(1)
    return jax.jit(step, donate_argnums=0), state, images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="float32")
    for name, default in (("batch", 64), ("size", 64), ("width", 64), ("latents", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, help="keep to as many processors")
    options = parser.parse_args()
    # JAX has no such setting: it starts a thread for every processor that it may run on.
    if options.threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    try:
        import jax
    except ImportError:
        sys.exit("jax is not installed")
    step, state, images = build(options)
    for _ in range(min(5, options.steps)):
        state = step(state, images)
    jax.block_until_ready(state)
    samples = []
    for _ in range(5):
        wall, process = time.perf_counter(), time.process_time()
        for _ in range(options.steps):
            state = step(state, images)
        jax.block_until_ready(state)
        spent = time.perf_counter() - wall, time.process_time() - process
        samples.append([seconds / options.steps for seconds in spent])
    walls, processes = zip(*samples, strict=True)
    answer = {"seconds": statistics.median(walls), "process_seconds": statistics.median(processes)}
    print(json.dumps({**answer, "jax": jax.__version__, "device": jax.devices()[0].device_kind}))


def critic_seconds(
    step: Step,
    precision: str,
    device: torch.device,
    *,
    steps: int,
    limit_s: float,
    threads: int | None = None,
) -> dict[str, Any]:
    """The time of a critic's step by JAX, in a process of its own: two frameworks in one would
    fight over memory and processors.

    Returns ``seconds`` (wall clock) and ``process_seconds`` (of all threads together), per step,
    with JAX's version and device.

    Raises:
        RuntimeError: JAX did not answer; the message says why.
    """
    words = [
        sys.executable, "-m", __name__, f"--precision={precision}", f"--batch={step.batch}",
        f"--size={step.size}", f"--width={step.width}", f"--latents={LATENTS}", f"--steps={steps}",
        *([f"--threads={threads}"] if threads else []),
    ]  # fmt: skip
    package = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_PLATFORMS": "cuda" if device.type == "cuda" else "cpu",
        "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    try:
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"JAX gave no answer within {limit_s:.0f} s") from error
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["JAX left no message"])[-1])
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


if __name__ == "__main__":
    main()
