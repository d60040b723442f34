"""What routing chose on this machine, and filling its table ahead of the first step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from fastgen.data import ImageDataset
from fastgen.ops.backend import BACKENDS, automatic_names
from fastgen.ops.route_table import Route, table_of
from fastgen.ops.routing import CANDIDATES, PASSES

from .config import build_model, resolve
from .devices import resolve_device
from .trainer import Trainer


def gpus() -> list[torch.device]:
    """One device for each kind of GPU that is visible: they share what was measured."""
    kinds = {
        torch.cuda.get_device_name(index): torch.device("cuda", index)
        for index in reversed(range(torch.cuda.device_count()))
    }
    return list(reversed(kinds.values()))


def routes_of(device: torch.device) -> dict[str, Route]:
    """What was measured on a device with the versions of now, by the words for a call."""
    return dict(sorted(table_of(device).routes.items()))


def row(call: str, route: Route) -> tuple[str, str, str, str]:
    """A route as text: choice, its time, its margin over the best other candidate, the call."""
    microseconds = f"{1e6 * route.seconds[route.choice]:.1f} us"
    margin = f"{route.margin():.2f}x" if len(route.seconds) > 1 else "alone"
    return route.choice, microseconds, margin, call


def rule_of(device_type: str) -> dict[str, str]:
    """The written rule: by operation and pass, the candidates in the order in which they are
    considered, and when one is taken unmeasured where that is not always.
    """
    allowed = automatic_names(device_type)
    return {
        f"{operation} {pass_}": "; ".join(
            f"{entry.name} ({entry.when})" if entry.when else entry.name
            for entry in CANDIDATES.get((operation, pass_), [])
            if not allowed.isdisjoint(entry.backends)
        )
        for operation, passes in PASSES.items()
        for pass_ in passes
    }


def describe_routes() -> dict[str, dict[str, Any]]:
    """All of it as data, for ``fastgen info --routes --json``."""
    found: dict[str, dict[str, Any]] = {"cpu": {"rule": rule_of("cpu")}}
    for device in gpus():
        found[torch.cuda.get_device_name(device)] = {
            "table": str(table_of(device).path),
            "rule": rule_of("cuda"),
            "routes": {
                call: {"choice": route.choice, "seconds": route.seconds, "margin": route.margin()}
                for call, route in routes_of(device).items()
            },
        }
    return found


def lines() -> Iterable[tuple[str, list[tuple[str, ...]]]]:
    """Titles and the rows under them, for ``fastgen info --routes``."""
    yield "cpu: the written rule", list(rule_of("cpu").items())
    if not torch.cuda.is_available():
        yield "cuda: no GPU is visible, so nothing is measured", [("backends", ", ".join(BACKENDS))]
    for device in gpus():
        name = torch.cuda.get_device_name(device)
        measured = [row(call, route) for call, route in routes_of(device).items()]
        if measured:
            yield f"{name}: measured, in {table_of(device).path}", [*measured]
        else:
            yield (
                f"{name}: nothing measured yet (fastgen bench --tune does it ahead); the rule",
                list(rule_of("cuda").items()),
            )


def tune(
    model: str,
    *,
    image_shape: tuple[int, int, int],
    batch_size: int,
    width: int | None = None,
    precision: str = "fp32",
    device: str = "cuda",
) -> int:
    """Run one step and one draw of a model, so that routing measures all of its layers.

    The step is that of ``fastgen train`` with the same model, width, batch size and precision, on
    random pictures. Returns how many calls were measured anew.

    Raises:
        ValueError: no such model, or pictures of this size are impossible for it.
    """
    given = {"width": width, "batch_size": batch_size, "precision": precision}
    settings = {**resolve(model, given), "image_shape": list(image_shape), "classes": 10}
    network = build_model(settings)
    place = resolve_device(device)  # with its number, as the tensors of the step have it
    before = len(table_of(place).routes)
    pictures = np.random.default_rng(0).integers(0, 256, (batch_size, *image_shape), np.uint8)
    labels = np.arange(batch_size) % settings["classes"]
    trainer = Trainer(
        network,
        ImageDataset(pictures, labels=labels),
        batch_size=batch_size,
        device=place,
        precision=precision,
        lr=settings["lr"],
        betas=tuple(settings["betas"]),
        progress=False,
    )
    trainer.fit(1)
    sample = getattr(network, "sample", None)
    if sample is not None:
        sample(batch_size, seed=0)
    return len(table_of(place).routes) - before
