"""Write docs/results.md from benchmarks/results/*.json: no number in it is typed by hand.

    python benchmarks/write_results.py

The README's table of numbers is rewritten too, between its two markers. What was not measured is
said plainly, and a target that is missed is named with by how much.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from gpu import targets
from results import CPU, FOLDER, GPU, between, machine_line, read, table, verdict

Results = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results.md"
README = ROOT / "README.md"
TARGETS = {"float32": 1.6, "bfloat16": 1.5}
MARKERS = ("<!-- numbers -->", "<!-- end of numbers -->")


def spread(values: list[float], form: str) -> str:
    """The median and, in brackets, the smallest and the largest."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def penalty_table(results: Results) -> str:
    rows = [
        (
            row["critic"],
            row["dtype"],
            row["layout"],
            f"{row['eager_ms']:.0f}",
            f"{row['compiled_ms']:.0f}",
            f"{row['fastgen_ms']:.0f}",
            f"**{row['ratio']:.2f}x**",
            f"{row['weight_gradient_difference']:.0e}",
        )
        for row in results["rows"]
    ]
    head = ("critic", "dtype", "layout", "eager ms", "whole-penalty compile ms", "fastgen ms")
    return table((*head, "eager / fastgen", "gradients differ by"), rows)


def quality_section(results: Results) -> str:
    runs, base = results["runs"], results["baselines"]

    def column(name: str, key: str, form: str) -> str:
        return spread([row[key] for row in runs[name]], form)

    rows = [
        ("classifier", "accuracy", column("classifier", "accuracy", ".2%"),
         f"SVC(C=10): {base['svc_accuracy']:.2%}"),
        ("VAE", "ELBO, nats per image", column("vae", "elbo", ".1f"),
         "probabilistic PCA, exact log-likelihood: "
         f"{base['probabilistic_pca_log_likelihood']:.1f}"),
        ("VAE", "log-likelihood, 64 importance samples", column("vae", "log_likelihood", ".1f"),
         "the same"),
        ("autoencoder", "squared error per pixel",
         column("autoencoder", "squared_error_per_pixel", ".4f"), ""),
        *(
            (name.upper(), what, column(name, key, ".3f"),
             f"real against real: {runs[name][0][bound]:.3f}")
            for name in ("wgan", "gan")
            for what, key, bound in (
                ("Frechet distance", "frechet_distance", "frechet_distance_floor"),
                ("precision", "precision", "precision_ceiling"),
                ("recall", "recall", "recall_ceiling"),
            )
        ),
    ]  # fmt: skip
    seeds = len(runs["wgan"])
    times = [
        (f"`{command}`", column(name, "seconds", ".0f"))
        for name, command in results["commands"].items()
    ]
    return f"""## Quality on scikit-learn's digits

1,797 real scans, resized to 16x16; a fixed stratified 20 % is held out. Median (smallest to
largest) over {seeds} seeds. {machine_line(results)}

    python benchmarks/quality.py --json benchmarks/results/quality.json

{table(("model", "number", "fastgen", "beside it"), rows)}

Pixels lie in [-1, 1], log-likelihoods are densities in those units. Frechet distance, precision and
recall compare 719 generated images with one half of the real training images, in the thought
vectors of a classifier of the same data; "real against real" is the other half in their place.
The VAE and PCA have 16 latents each.

{table(("command (one thread)", "seconds of training"), times)}
"""


def penalty_section(results: Results) -> str:
    return f"""## Gradient penalty and its backward

Medians of process time over {results["rounds"]} interleaved rounds, one thread, equal precision
and layout. Eager is PyTorch with LeakyReLU in place; the whole-penalty compile is PyTorch's private
flag `trace_autograd_ops`. The last column compares the weight gradients of the two penalties.
{machine_line(results)}

    python benchmarks/penalty_ratio.py --compile --json benchmarks/results/penalty.json

{penalty_table(results)}

{shortfall(results)}
"""


def shortfall(results: Results) -> str:
    """Which rows miss their target, and why."""
    short = [
        f"{row['critic']} {row['dtype']} {row['layout']} ({row['ratio']:.2f}x)"
        for row in results["rows"]
        if row["ratio"] < TARGETS[row["dtype"]]
    ]
    targets = ", ".join(f"{target}x in {dtype}" for dtype, target in TARGETS.items())
    if not short:
        return f"Every row reaches its target ({targets})."
    return (
        f"The targets are {targets}. Short of them: {', '.join(short)}.\n"
        "Contiguous float32 has one slow kernel on both sides, oneDNN's gradient to 32 input\n"
        "channels. Converting the layout around it is what the operations promise not to do."
    )


# --- CPU targets ---


def cpu_section(results: Results | None) -> str:
    title = "## Targets on a CPU"
    command = "    python benchmarks/cpu.py"
    if results is None:
        return f"{title}\n\nNot measured yet.\n\n{command}\n"
    rows = [row for row in results["rows"] if "failed" not in row]
    missed = [
        f"* {row['name']}, {threads_of(row['threads'])}: {against(demand)} {reached(demand)}, "
        f"target {goal(demand)}: {judged(demand)}"
        + (
            f"; the machine's peak allows {at_peak(demand)}"
            if demand.get("at_peak", demand["target"]) < demand["target"]
            else ""
        )
        for row in rows
        for demand in row["demands"]
        if judged(demand).startswith("missed")
    ]
    missing = [
        f"* {row['row']}, {threads_of(row['threads'])}: {reason}"
        for row in results["rows"]
        for reason in (
            [f"failed: {row['failed']}"]
            if "failed" in row
            else [f"{name}: {why}" for name, why in row["left_out"].items()]
        )
    ]
    copies = ", ".join(
        f"{limits['copy_bytes_per_second'] / 1e9:.3g} GB/s with {threads_of(threads)}"
        for threads, limits in sorted(results["ceilings"].items())
    )
    peaks = ", ".join(
        f"{rate / 1e9:.0f} GFLOP/s in {dtype}"
        for dtype, rate in results["ceilings"]["1"]["operations_per_second"].items()
    )
    parts = [
        f"{title}\n\nMedians over interleaved rounds of process time, divided by the threads; "
        "beside them the ratio by\nthe wall clock. At the peak: what would be reached if the "
        "convolutions and products that fastgen cannot\ndo without, by Winograd's method where it "
        f"has that, ran at the measured peak ({peaks}) and all\nelse took no time. "
        "Measured copy bandwidth: "
        f"{copies}.\n"
        f"{machine_line(results)}\n\n{command}\n",
        table(
            ("what", "threads", "fastgen over", "target", "reached", "by wall clock",
             "at the peak", "verdict"),
            [
                (row["name"], row["threads"], against(demand), goal(demand), reached(demand),
                 by_wall_clock(demand), at_peak(demand), judged(demand))
                for row in rows
                for demand in row["demands"]
            ],
        ) + "\n",
        table(
            ("what", "threads", "times"),
            [
                (row["name"], row["threads"],
                 times_of(row))
                for row in rows
            ],
        ) + "\n",
        "Missed:\n\n" + "\n".join(missed) + "\n" if missed else "No target is missed.\n",
    ]  # fmt: skip
    if missing:
        parts.append("Not measured:\n\n" + "\n".join(missing) + "\n")
    return "\n".join(parts)


def threads_of(count: int | str) -> str:
    return f"{count} thread{'s' * (int(count) != 1)}"


def times_of(row: Results) -> str:
    return ", ".join(f"{name} {milliseconds(value)}" for name, value in row["seconds"].items())


def milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def is_seconds(demand: Results) -> bool:
    return bool(demand["over"] == "seconds")


def is_share(demand: Results) -> bool:
    return bool(demand["over"] == "copy bandwidth")


def against(demand: Results) -> str:
    """What a demand compares: fastgen's precision and layout, and the other side."""
    if is_seconds(demand):
        return str(demand["ours"])
    return f"{demand['ours'].removeprefix('fastgen ')}, over {demand['over']}"


def number(value: float, demand: Results) -> str:
    if is_seconds(demand):
        return f"{value:.3f} s"
    return f"{100 * value:.0f} %" if is_share(demand) else f"{value:.2f}x"


def goal(demand: Results) -> str:
    return f"{'<' if is_seconds(demand) else '>='} {number(demand['target'], demand)}"


def reached(demand: Results) -> str:
    return "-" if demand["reached"] is None else f"**{number(demand['reached'], demand)}**"


def by_wall_clock(demand: Results) -> str:
    return f"{demand['by_wall_clock']:.2f}x" if "by_wall_clock" in demand else ""


def at_peak(demand: Results) -> str:
    return f"{demand['at_peak']:.2f}x" if "at_peak" in demand else ""


def judged(demand: Results) -> str:
    return verdict(demand["reached"], demand["target"], at_most=is_seconds(demand))


# --- GPU ---


def gpu_section(results: Results | None) -> str:
    title, command = "## On a GPU", "    benchmarks/gpu/check.sh"
    if results is None or results.get("tiny"):
        return f"{title}\n\nNot measured on a GPU.\n\n{command}\n"
    machine = results["machine"]
    groups = [
        f"### {name}\n\n{targets.row_table(results, [name])}\n"
        for name in results["groups"]
        if targets.rows_of(results, name)
    ]
    missing = targets.left_out(results)
    return "\n".join(
        [
            f"{title}\n\n{machine['device']}, driver {machine.get('driver')}, torch "
            f"{machine['torch']}, commit {machine['commit']}, {results['date']}.\n\n{command}\n",
            *([f"{ceilings_line(results['ceilings'])}\n"] if results.get("ceilings") else []),
            targets.target_table(results) + "\n",
            *groups,
            *(["Not measured, or wrong:\n\n" + "\n".join(f"* {m}" for m in missing) + "\n"]
              if missing else []),
        ]
    )  # fmt: skip


def ceilings_line(ceilings: Results) -> str:
    """What the device does at most, as the same run measured it."""
    rates = ", ".join(
        f"{rate / 1e12:.0f} TFLOP/s in {'TF32' if dtype == 'float32' else dtype}"
        for dtype, rate in ceilings["operations_per_second"].items()
    )
    moved = f"a copy moves {ceilings['copy_bytes_per_second'] / 1e12:.2f} TB/s, read and written"
    filled = ceilings.get("fill_bytes_per_second")
    if filled is not None:
        moved += f", filling a tensor {filled / 1e12:.2f} TB/s"
    return f"Ceilings in the same run: {moved}; a matrix product of 8192 rows\nreaches {rates}."


STEP_PEERS = ("eager", "compile reduce-overhead", "jax jit")


def gpu_table(results: Results) -> str:
    """Whole steps and the layer suite on a GPU, over each peer."""

    def over(row: Results, peer: str) -> str:
        found = targets.speedup(row, peer)
        return "-" if found is None else f"{found:.2f}x"

    rows = [
        (f"{row['name']}, {row['dtype']}", f"{1e3 * row['seconds']['fastgen']:.2f}",
         *(over(row, peer) for peer in STEP_PEERS))
        for row in targets.rows_of(results, "steps")
    ]  # fmt: skip
    head = (f"on {results['machine']['device']}", "ms", *(f"over {peer}" for peer in STEP_PEERS))
    means = [
        f"{check.demand.partition(':')[0]} {check.measured:.2f}x ({check.rows} layers)"
        for check in targets.checks(results)["GAN layer suite, forward + backward"]
        if check.measured is not None and "mean" in check.demand
    ]
    suite = (
        "\n\nA suite of GAN and VAE layers, forward + backward, over the better of eager and "
        f"torch.compile, geometric mean:\n{', '.join(means)}."
    )
    return table(head, rows) + (suite if means else "")


# --- the numbers that matter ---

HEADLINES = (
    ("WGAN-GP critic step, 64x64, bf16", "critic", "fastgen bfloat16 channels_last",
     "eager bfloat16 channels_last"),
    ("the same in contiguous memory, float32", "critic", "fastgen float32 contiguous",
     "eager float32 contiguous"),
    ("DCGAN-64 training step, bf16", "dcgan", "fastgen bfloat16 channels_last",
     "eager bfloat16 channels_last"),
    ("sampling with a generator, 64x64, bf16", "sampling", "fastgen bfloat16 channels_last",
     "ONNX Runtime float32"),
    ("input gradient at the picture's edge, 3x3", "edge k3 input gradient",
     "fastgen float32 channels_last", "eager float32 channels_last"),
)  # fmt: skip
"""(what, row of cpu.json, ours, over): beside the gradient penalty the numbers that matter."""


def numbers_table(penalty: Results, cpu: Results | None, gpu: Results | None) -> str:
    """Six numbers for the README, one thread, and what is known of a GPU."""
    ratios = [row["ratio"] for row in penalty["rows"]]
    middle = statistics.geometric_mean(ratios)
    worst = min(row["ratio"] / TARGETS[row["dtype"]] for row in penalty["rows"])
    short = sum(row["ratio"] < TARGETS[row["dtype"]] for row in penalty["rows"])
    outcome = f"{short} of {len(ratios)} {verdict(worst, 1.0)}" if short else "met"
    wanted = ", ".join(f"{dtype} >= {target}x" for dtype, target in TARGETS.items())
    rows: list[tuple[str, str, str, str]] = [
        ("gradient penalty and its backward",
         f"**{middle:.2f}x** ({min(ratios):.2f}x to {max(ratios):.2f}x)", "eager PyTorch",
         f"{wanted}: {outcome}")
    ]  # fmt: skip
    for what, key, ours, over in HEADLINES:
        demand = _demand(cpu, key, ours, over)
        if demand is None or demand["reached"] is None:
            rows.append((what, "not measured", over, ""))
        else:
            rows.append((what, reached(demand), over, f"{goal(demand)}: {judged(demand)}"))
    text = table(("one CPU core", "faster", "than", "target"), rows)
    if gpu is None or gpu.get("tiny"):
        return f"{text}\n\nNothing has been measured on a GPU."
    return f"{text}\n\nWhole training steps on a GPU:\n\n{gpu_table(gpu)}"


def _demand(cpu: Results | None, key: str, ours: str, over: str) -> Results | None:
    found = [
        demand
        for row in (cpu or {"rows": []})["rows"]
        if row["row"] == key and row["threads"] == 1
        for demand in row.get("demands", ())
        if (demand["ours"], demand["over"]) == (ours, over)
    ]
    return found[0] if found else None


# --- writing ---


def measured(path: Path) -> Results:
    """The results in a file that must be there."""
    found = read(path)
    if found is None:
        raise FileNotFoundError(f"{path} is missing: it is in git")
    return found


def page(folder: Path = FOLDER) -> str:
    """docs/results.md from the files in a folder."""
    penalty, quality = (measured(folder / name) for name in ("penalty.json", "quality.json"))
    return "\n".join(
        [
            "# Results\n\nMeasured, not promised. `python benchmarks/write_results.py` writes this "
            "page from `benchmarks/results/*.json`;\n[benchmarks.md](benchmarks.md) says how each "
            "number is measured.\n",
            penalty_section(penalty),
            cpu_section(read(folder / CPU.name)),
            gpu_section(read(folder / GPU.name)),
            quality_section(quality),
        ]
    )


def with_numbers(text: str, folder: Path = FOLDER) -> str:
    """The README with its table of numbers written anew."""
    penalty = measured(folder / "penalty.json")
    numbers = numbers_table(penalty, read(folder / CPU.name), read(folder / GPU.name))
    return between(MARKERS, numbers, text)


def main() -> None:
    PAGE.write_text(page())
    README.write_text(with_numbers(README.read_text()))


if __name__ == "__main__":
    main()
