"""The commands: train, sample, evaluate, info, bench. They import torch when they run."""

from __future__ import annotations

import json
import os
import shlex
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fastgen.training.config import (
    COMMON,
    GAN_LOSSES,
    GAN_PENALTIES,
    RECIPES,
    WGAN_REGULARIZERS,
    ConfigError,
    build_model,
    check_device,
    check_seed,
    resolve,
    term_forms,
    with_data,
)
from fastgen.training.run_folder import RunFolder, new_run, next_run
from fastgen.training.text import columns

from .failures import (
    fail,
    one_line_for_an_early_end,
    one_line_for_each_failure,
    warn,
    warn_line,
    wrong_input,
)

app = typer.Typer(
    name="fastgen",
    help="Train convolutional generative models on images, look at what they draw, measure them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

RUNS = Path("runs")
OUTPUT_DEFAULTS = {
    "device": "auto",
    "capture": "auto",
    "sample_every": 250,
    "checkpoint_every": 250,
}

DEVICES = "auto: a CUDA GPU if there is one; cuda:1: one by its number."
SMALLER = "a smaller --batch-size, --width or --image-size takes less"


def main() -> None:
    """The entry point of the command `fastgen`."""
    # Threads that spin while they wait make training on a busy machine several times slower. It
    # must be said before torch, and with it OpenMP, is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()


def _defaults(option: str) -> str:
    """What an option is when it is not given, for --help; one value, or one for each model."""
    values = {name: recipe.defaults.get(option) for name, recipe in RECIPES.items()}
    shown = ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
    same = len(set(values.values())) == 1
    return _default(values["gan"] if same else shown)


def _default(value: object) -> str:
    return f"[dim]\\[default: {value}][/dim]"


def _option(panel: str, *names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


# What is None by default has its default from a table, and says so in its help.
_of_model = partial(_option, "Model", show_default=False)
_of_training = partial(_option, "Training", show_default=False)
_of_run = partial(_option, "Run", show_default=False)
_with_tune = partial(_option, "With --tune")


@app.command(
    epilog="Examples:\n\n"
    "fastgen train wgan\n\n"
    "fastgen train vae --data mnist:~/mnist --latent-dim 32 --run runs/mnist-vae\n\n"
    "fastgen train gan --data ~/faces --loss relativistic --regularizer r1:1,r2:1\n\n"
    "torchrun --nproc_per_node=4 -m -- fastgen train wgan --data ~/faces --run runs/faces\n\n"
    "The same command with --run DIR continues the run in DIR, a larger --steps a finished one; "
    "without --run every training is a new run. Started by torchrun, several processes train "
    "together, each on a GPU or a part of the CPU's cores."
)
def train(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=f"What to train: {', '.join(RECIPES)}.")
    ],
    data: Annotated[
        str | None,
        _of_training(
            "--data",
            metavar="SPEC",
            help="digits (scikit-learn's handwritten digits), a folder with PNG, JPEG and WebP "
            "images at any depth, FILE.npy or FILE.npz, mnist:DIR, cifar10:DIR. "
            f"{_default(COMMON['data'])}",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        _of_run(
            "--run",
            metavar="DIR",
            help="Folder of the run, to start or to continue. "
            f"{_default('the next number, as runs/0001-wgan-digits')}",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        _of_training("--steps", metavar="N", min=1, help=f"Steps in all. {_defaults('steps')}"),
    ] = None,
    batch_size: Annotated[
        int | None,
        _of_training(
            "--batch-size",
            metavar="N",
            min=1,
            help=f"Images in a batch, of all processes together. {_default(COMMON['batch_size'])}",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        _of_training(
            "--image-size",
            metavar="N",
            min=1,
            help="Crop and resize images to this many pixels. "
            f"{_default('as the data comes; digits 16, folders 64')}",
        ),
    ] = None,
    width: Annotated[
        int | None,
        _of_model(
            "--width",
            metavar="N",
            min=1,
            help=f"Channels next to the image; deeper layers have more. {_defaults('width')}",
        ),
    ] = None,
    latent_dim: Annotated[
        int | None,
        _of_model(
            "--latent-dim", metavar="N", min=1, help=f"Length of z. {_defaults('latent_dim')}"
        ),
    ] = None,
    loss: Annotated[
        str | None,
        _of_model(
            "--loss", metavar="NAME", help=f"For gan: {', '.join(GAN_LOSSES)}. {_defaults('loss')}"
        ),
    ] = None,
    regularizer: Annotated[
        str | None,
        _of_model(
            "--regularizer",
            metavar="NAME[:X]",
            help=f"For wgan: {term_forms(WGAN_REGULARIZERS)}. For gan: "
            f"{term_forms(GAN_PENALTIES, several=True)}. {_defaults('regularizer')}",
        ),
    ] = None,
    critic_steps: Annotated[
        int | None,
        _of_model(
            "--critic-steps",
            metavar="N",
            min=1,
            help="For wgan: updates of the critic for one of the generator. "
            f"{_defaults('critic_steps')}",
        ),
    ] = None,
    ema: Annotated[
        float | None,
        _of_training(
            "--ema",
            metavar="X",
            help="Memory of the averaged generator that draws the pictures, in [0, 1); 0: none. "
            f"{_defaults('ema')}",
        ),
    ] = None,
    lr: Annotated[
        float | None,
        _of_training("--lr", metavar="X", help=f"Adam's learning rate. {_defaults('lr')}"),
    ] = None,
    seed: Annotated[
        int | None,
        _of_training(
            "--seed",
            metavar="N",
            min=0,
            help=f"All randomness derives from it. {_default(COMMON['seed'])}",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        _of_training(
            "--precision",
            metavar="fp32|bf16",
            help=f"bf16: mixed precision. {_default(COMMON['precision'])}",
        ),
    ] = None,
    device: Annotated[
        str,
        _of_training(
            "--device",
            metavar="auto|cpu|cuda",
            help=f"{DEVICES} {_default(OUTPUT_DEFAULTS['device'])}",
        ),
    ] = "auto",
    capture: Annotated[
        str,
        _of_training(
            "--capture",
            metavar="auto|off|on",
            help="Replay steps from CUDA graphs; auto: on a GPU where it can be done. "
            f"{_default(OUTPUT_DEFAULTS['capture'])}",
        ),
    ] = "auto",
    sample_every: Annotated[
        int,
        _of_run(
            "--sample-every",
            metavar="N",
            min=1,
            help=f"Steps between pictures. {_default(OUTPUT_DEFAULTS['sample_every'])}",
        ),
    ] = 250,
    checkpoint_every: Annotated[
        int,
        _of_run(
            "--checkpoint-every",
            metavar="N",
            min=1,
            help=f"Steps between checkpoints. {_default(OUTPUT_DEFAULTS['checkpoint_every'])}",
        ),
    ] = 250,
    dry_run: Annotated[
        bool,
        _of_run(
            "--dry-run",
            help="Check the options, print the configuration, the layers with their shapes and the "
            "parameter counts, then exit. No run is made.",
        ),
    ] = False,
) -> None:
    """Train a model from a folder of images, or of handwritten digits.

    The run folder holds samples, checkpoints, a log and a report.
    """
    given = {
        "data": data,
        "steps": steps,
        "batch_size": batch_size,
        "image_size": image_size,
        "width": width,
        "latent_dim": latent_dim,
        "loss": loss,
        "regularizer": regularizer,
        "critic_steps": critic_steps,
        "lr": lr,
        "ema": ema,
        "seed": seed,
        "precision": precision,
    }
    with one_line_for_each_failure(SMALLER), ExitStack() as stack:
        from fastgen.data import AffineJitter
        from fastgen.training.processes import find_processes
        from fastgen.training.summary import describe
        from fastgen.training.trainer import Trainer

        processes = find_processes()
        with wrong_input(), processes.together():
            with processes.gate():
                check_device(device, capture)
                settings, splits = with_data(resolve(model, given))
                network = build_model(settings)
            if processes.is_first:
                warn(f"skipped {path}: {reason}" for path, reason in splits.train.skipped)
                if splits.train.left_out:
                    warn_line(splits.train.left_out)
            if run is None and processes.is_first:
                make = nullcontext(next_run(RUNS, settings)) if dry_run else new_run(RUNS, settings)
                run = stack.enter_context(make)
            folder = RunFolder(Path(processes.tell(str(run))))
            with processes.gate():
                description = ""
                if processes.is_first:
                    folder.check(settings)
                    if dry_run:  # before the trainer moves the network
                        description = describe(network, settings, splits)
                trainer = Trainer(
                    network,
                    splits.train,
                    batch_size=settings["batch_size"],
                    seed=settings["seed"],
                    device=device,
                    precision=settings["precision"],
                    capture=capture,
                    lr=settings["lr"],
                    betas=tuple(settings["betas"]),
                    ema_decay=settings.get("ema"),
                    augment=AffineJitter() if settings.get("augment") else None,
                    run=folder.path,
                    settings=settings,
                    held_out=splits.held_out,
                    sample_every=sample_every,
                    checkpoint_every=checkpoint_every,
                )
        if dry_run:
            if processes.is_first:
                typer.echo(description)
            return
        shown = {
            "run": folder.path,
            **given,
            "device": device,
            "capture": capture,
            "sample_every": sample_every,
            "checkpoint_every": checkpoint_every,
        }
        with one_line_for_an_early_end(_command(model, shown), folder):
            if not trainer.fit(settings["steps"]) and processes.is_first:
                done = f"{folder.path} has its {settings['steps']} steps already"
                typer.echo(f"{done}: give a larger --steps to go on")
    if processes.is_first:
        _say_where(folder, settings["steps"])


@app.command(
    epilog="Examples:\n\nfastgen sample runs/0001-wgan-digits\n\n"
    "fastgen sample runs/0001-wgan-digits --count 16 --seed 7 --out digits.png\n\n"
    "fastgen sample runs/0001-wgan-digits --interpolate"
)
def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    count: Annotated[int, typer.Option(min=1, help="How many images.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same images.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help=f"Where to write the picture. {_default('in the run folder')}",
        ),
    ] = None,
    interpolate: Annotated[
        bool,
        typer.Option(
            "--interpolate", help="Rows of 8, each along the arc from one random latent to another."
        ),
    ] = False,
) -> None:
    """Draw images with a trained model's averaged weights."""
    with one_line_for_each_failure("a smaller --count takes less"), wrong_input():
        from fastgen.training.devices import resolve_device
        from fastgen.training.loading import load_run
        from fastgen.training.pictures import (
            DrawsImages,
            interpolations,
            samples,
            save_png,
            tiles,
        )
        from fastgen.training.processes import is_first_process

        if not is_first_process():
            return
        check_seed(seed)
        what = "interpolation" if interpolate else "sample"
        path = out if out is not None else run / f"{what}-seed{seed}.png"
        if path.suffix.lower() != ".png" or path.is_dir():
            raise ConfigError(f"--out must be a PNG file (got {path})")
        loaded = load_run(run, device=resolve_device("auto"))
        warn(loaded.complaints)
        if not isinstance(loaded.model, DrawsImages):
            raise ConfigError(f"{run} holds a run of {loaded.settings['model']}: {CANNOT_DRAW}")
        draw = interpolations if interpolate else samples
        save_png(path, tiles(draw(loaded.model, count, seed=seed)))
    typer.echo(path)


CANNOT_DRAW = "only a gan, wgan or vae has latents to draw new images from"


@app.command(
    epilog="Examples:\n\nfastgen evaluate runs/0001-wgan-digits\n\n"
    "fastgen evaluate runs/0001-wgan-digits --json"
)
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Where the run's data is now, as in train. "
            f"{_default('where it was during the training')}",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a trained model.

    On images that the training has not seen: classifier: accuracy. vae: ELBO, log-likelihood,
    squared error. autoencoder: squared error.

    Beside one half of the training images: gan, wgan: Frechet distance, precision and recall, and
    what the other half reaches in their place. They are taken in the features of a classifier of
    the same data, so the data needs labels: put the pictures into one sub-folder per class.

    The numbers also go to evaluation.json and to the report.
    """
    with one_line_for_each_failure(), wrong_input():
        from fastgen.data import DataError, fingerprint, load
        from fastgen.files import replace_file
        from fastgen.training.devices import resolve_device
        from fastgen.training.evaluation import evaluate as measure
        from fastgen.training.loading import load_run
        from fastgen.training.processes import is_first_process
        from fastgen.training.report import write_report

        if not is_first_process():
            return
        loaded = load_run(run, device=resolve_device("auto"))
        warn(loaded.complaints)
        spec = loaded.settings["data"] if data is None else data
        try:
            splits = load(spec, image_size=loaded.settings["image_size"])
        except DataError as error:
            if data is not None:
                raise
            raise ConfigError(f"{error}; --data SPEC says where the run's data is now") from error
        shape = list(splits.train.image_shape)
        if shape != loaded.settings["image_shape"]:
            known = loaded.settings["image_shape"]
            raise ConfigError(f"{run} was trained on images of shape {known}, {spec} has {shape}")
        if fingerprint(splits.train) != loaded.settings["data_fingerprint"]:
            warn_line(f"the pictures of {spec} are not those that {run} was trained on")
        numbers = measure(loaded.model, splits, say=warn_line)
        results = {"step": loaded.step, **numbers}
        # First: the run may be somebody else's, in a folder that cannot be written.
        typer.echo(json.dumps(results) if as_json else columns(_rounded(results)))
        folder = RunFolder(run)
        replace_file(folder.evaluation, json.dumps(results, indent=1).encode())
        write_report(folder)


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    routes: Annotated[
        bool,
        typer.Option(
            "--routes", help="What runs for which shape, how long it takes and by what margin."
        ),
    ] = False,
) -> None:
    """Print versions, devices, backends, environment variables and what is installed."""
    if routes:
        with one_line_for_each_failure(), wrong_input():
            from fastgen.training.routes import describe_routes, lines

            if as_json:
                typer.echo(json.dumps(describe_routes()))
                return
            for title, rows in lines():
                typer.echo(title)
                typer.echo(columns(rows))
        return
    from fastgen.training.environment import describe_environment

    facts = describe_environment()
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for title, entries in facts.items():
        if not entries:
            continue
        typer.echo(title)
        typer.echo(columns(list(entries.items())))


@app.command(
    epilog="Examples:\n\nfastgen bench --quick\n\nfastgen bench --threads 2 --out ladder\n\n"
    "fastgen bench --tune\n\n"
    "fastgen bench --tune --model wgan --image-size 64 --batch-size 64 --precision bf16"
)
def bench(
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Under two minutes: fewer rounds, little of torch.compile."),
    ] = False,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the JSON and the two pictures.")
    ] = Path("fastgen-bench"),
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of the CPU; the clock is their process time.")
    ] = 1,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help=DEVICES)] = "auto",
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="No ladder: measure every layer's candidates now instead of at its first use.",
            rich_help_panel="With --tune",
        ),
    ] = False,
    model: Annotated[
        list[str] | None,
        _with_tune(
            "--model",
            metavar="MODEL",
            help=f"One of {', '.join(RECIPES)}; may be repeated. {_default('all of them')}",
        ),
    ] = None,
    image_size: Annotated[int, _with_tune("--image-size", min=1, help="Height and width.")] = 64,
    channels: Annotated[
        int,
        _with_tune("--channels", min=1, max=4, help="Channels of the pictures."),
    ] = 3,
    batch_size: Annotated[int, _with_tune("--batch-size", min=1, help="Images in a batch.")] = 64,
    width: Annotated[
        int | None,
        _with_tune(
            "--width",
            min=1,
            help=f"Channels next to the image, as in train. {_defaults('width')}",
        ),
    ] = None,
    precision: Annotated[
        str,
        _with_tune("--precision", metavar="fp32|bf16", help="As in train."),
    ] = "fp32",
) -> None:
    """Measure on this machine how fast layers, training steps and sampling are.

    The ladder: PyTorch eagerly, in channels_last, in bf16, through torch.compile, other peers
    where they are installed, fastgen, and fastgen in CUDA graphs. Ctrl-C keeps what was measured.

    With --tune instead: which kernel is fastest for each layer of a model. The choices are kept in
    the user's cache folder and used by every later run with the same shapes; `fastgen info
    --routes` shows them.
    """
    with one_line_for_each_failure(SMALLER if tune else ""), wrong_input():
        check_device(device)
        if not tune:
            complete = _climb(quick, out, threads, device)
            if not complete:
                raise fail(f"stopped; what was measured is in {out}", 130)
            return
        import torch

        from fastgen.training.routes import tune as measure

        if device == "cpu" or not torch.cuda.is_available():
            why = "" if device == "cpu" else "no GPU is visible: "
            typer.echo(f"{why}on a CPU the written rule decides, nothing to measure")
            return
        for name in model or list(RECIPES):
            added = measure(
                name,
                image_shape=(channels, image_size, image_size),
                batch_size=batch_size,
                width=width,
                precision=precision,
                device="cuda" if device == "auto" else device,
            )
            typer.echo(f"{name}: {added} calls measured")


def _climb(quick: bool, out: Path, threads: int, device: str) -> bool:
    """Measure the ladder, print it and leave it in a folder; whether it came to its end."""
    from fastgen.bench.climb import climb
    from fastgen.bench.tables import machine_line

    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out must be a folder (got the file {out})")
    climbed = climb(out, quick=quick, threads=threads, device=device, say=warn_line)
    _print_tables(climbed.tables)
    for line in climbed.left_out:
        typer.echo(f"not measured, {line}")
    typer.echo(machine_line(climbed.results))
    typer.echo(columns([(path.suffix[1:], path) for path in climbed.files]))
    return bool(climbed.results["complete"])


def _print_tables(tables: list[Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for table in tables:
        console.print(table)
        console.print()


def _command(model: str, options: dict[str, Any]) -> str:
    """The command line that continues a run, options at their defaults left out."""
    words = [*_program(), "train", model]
    for option, value in options.items():
        if value is not None and value != OUTPUT_DEFAULTS.get(option):
            words += ["--" + option.replace("_", "-"), str(value)]
    return shlex.join(words)


def _program() -> list[str]:
    """How this command is started: by torchrun where there are several processes."""
    count, here = (os.environ.get(name, "1") for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if count == "1":
        return ["fastgen"]
    # Several machines have options of torchrun that are not known here.
    return [
        "torchrun",
        f"--nproc_per_node={here}" if count == here else "...",
        "-m",
        "--",
        "fastgen",
    ]


def _say_where(folder: RunFolder, step: int) -> None:
    pictures = sorted(folder.samples.glob(f"{step:06d}*.png"))
    places = [("picture", path) for path in pictures]
    typer.echo(columns([*places, ("report", folder.report), ("run folder", folder.path)]))


def _rounded(results: dict[str, float]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), f"{value:.5g}") for name, value in results.items()]
