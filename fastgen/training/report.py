"""The report of a run: one HTML file that needs nothing beside it."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from html import escape
from pathlib import Path

from fastgen.files import replace_file

from .log import NOT_LOSSES, Record, read_log
from .run_folder import RunFolder
from .text import writable

STYLE = """
:root { color-scheme: light dark; --line: #2563eb; --faint: #93b4f5; --rule: #d4d8df;
        --ink: #1c2330; --soft: #687386; --page: #f6f7f9; --card: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --line: #7aa7ff; --faint: #35507f; --rule: #2d3542;
        --ink: #e6e9ef; --soft: #95a0b3; --page: #12151a; --card: #1a1f27; } }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem; background: var(--page);
       color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.6rem; } h2 { margin: 2.2rem 0 .8rem; font-size: 1.1rem; }
p.lead { margin: .2rem 0 0; color: var(--soft); }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); }
figure, table { margin: 0; background: var(--card); border: 1px solid var(--rule);
                border-radius: 8px; }
figure { padding: .8rem; } figcaption { margin-bottom: .4rem; color: var(--soft); }
figcaption b { color: var(--ink); } img { width: 100%; image-rendering: pixelated; }
svg { display: block; width: 100%; } svg text { fill: var(--soft); font-size: 11px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td { padding: .25rem .9rem; border-top: 1px solid var(--rule); } tr:first-child td { border: 0; }
td:first-child { color: var(--soft); }
"""

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 360, 160, 52, 18, 8
MOST_POINTS = 400
SMOOTHING = 0.9


def write_report(folder: RunFolder) -> None:
    """Bring ``report.html`` up to date with what lies in the folder."""
    settings = folder.settings() or {}
    records = read_log(folder.log)
    sections = [
        _title(folder.path, settings, records[-1] if records else {}),
        _section("Evaluation", _evaluation(folder.evaluation)),
        _section("Pictures", _pictures(folder)),
        _section("Losses", _curves(records)),
        _section("Configuration", _table(settings.items())),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(folder.path.name)}</title><style>{STYLE}</style></head>\n"
        f"<body>{''.join(sections)}</body></html>\n"
    )
    replace_file(folder.report, writable(page).encode())


def curve(name: str, steps: Sequence[float], values: Sequence[float]) -> str:
    """One loss as an SVG figure: faint as logged, strong as a moving average."""
    low, high = min(values), max(values)
    left, right = steps[0], steps[-1]

    def x(step: float) -> float:
        return LEFT + (step - left) / max(right - left, 1) * (WIDTH - LEFT - 4)

    def y(value: float) -> float:
        return TOP + (high - value) / ((high - low) or 1.0) * (HEIGHT - TOP - BOTTOM)

    def line(points: Sequence[float], color: str, width: float) -> str:
        every = -(-len(points) // MOST_POINTS)
        pairs = list(zip(steps, points, strict=True))
        shown = [*pairs[:-1:every], pairs[-1]]
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in shown)
        return (
            f'<polyline points="{path}" fill="none" stroke="var({color})" '
            f'stroke-width="{width}" stroke-linejoin="round"/>'
        )

    base = HEIGHT - BOTTOM
    return (
        f"<figure><figcaption><b>{escape(name)}</b> {values[-1]:.4g}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">'
        f'<path d="M{LEFT},{TOP}V{base}H{WIDTH - 4}" fill="none" stroke="var(--rule)"/>'
        f'<text x="{LEFT - 5}" y="{TOP + 8}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{LEFT - 5}" y="{base}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 4}">{left:.0f}</text>'
        f'<text x="{WIDTH - 4}" y="{HEIGHT - 4}" text-anchor="end">step {right:.0f}</text>'
        f"{line(values, '--faint', 1)}{line(_smoothed(values), '--line', 1.8)}</svg></figure>"
    )


def _title(path: Path, settings: dict[str, object], last: Record) -> str:
    facts = [f"step {last['step']:.0f}"] if last else ["no log point yet"]
    if last:
        facts.append(f"{timedelta(seconds=round(last['seconds']))} of training")
        facts.append(f"{last['images_per_second']:.0f} images/s")
    what = f"{settings.get('model', 'model')} on {settings.get('data', 'data')}"
    lead = " &middot; ".join(map(escape, [what, *facts]))
    return f'<h1>{escape(path.resolve().name)}</h1><p class="lead">{lead}</p>'


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}" if content else ""


def _evaluation(path: Path) -> str:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # none yet, or a damaged one
        return ""
    return _table(found.items()) if isinstance(found, dict) else ""


def _pictures(folder: RunFolder) -> str:
    samples = sorted(folder.samples.glob("*.png"), key=_step_of)
    kinds: list[tuple[str, Callable[[Path], bool]]] = [
        ("samples", lambda path: path.stem.isdecimal()),
        ("reconstructions", lambda path: not path.stem.isdecimal()),
    ]
    shown = [(kind, [path for path in samples if belongs(path)][-1:]) for kind, belongs in kinds]
    shown.append(("real images", [folder.reals] if folder.reals.exists() else []))
    figures = [
        f"<figure><figcaption><b>{kind}</b> {escape(path.stem)}</figcaption>"
        f'<img alt="{kind}" src="data:image/png;base64,{b64encode(path.read_bytes()).decode()}">'
        "</figure>"
        for kind, paths in shown
        for path in paths
    ]
    return _cards(figures)


def _step_of(picture: Path) -> tuple[int, str]:
    # Not by name alone: "1000000" comes before "999750".
    step = picture.stem.partition("-")[0]
    return int(step) if step.isdecimal() else -1, picture.name


def _curves(records: list[Record]) -> str:
    # A model may have a loss in some steps only: its curve has the log points that have it.
    points: dict[str, tuple[list[float], list[float]]] = {}
    for record in records:
        for name, value in record.items():
            if name not in NOT_LOSSES:
                steps, values = points.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(value)
    return _cards([curve(name, *found) for name, found in points.items()])


def _table(rows: Iterable[tuple[str, object]]) -> str:
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(_number(value))}</td></tr>" for name, value in rows
    )
    return f"<table>{cells}</table>"


def _number(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _cards(figures: list[str]) -> str:
    return f'<div class="cards">{"".join(figures)}</div>' if figures else ""


def _smoothed(values: Sequence[float]) -> list[float]:
    """The exponential moving average, normalized so that the start is not pulled towards 0."""
    total = weight = 0.0
    smooth = []
    for value in values:
        total = SMOOTHING * total + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        smooth.append(total / weight)
    return smooth
