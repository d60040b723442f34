"""The command line."""

try:
    from .commands import app as app
    from .commands import main as main
except ModuleNotFoundError as error:  # of an install without the trainer
    if error.name != "typer":
        raise

    def main() -> None:
        """Say what the command line lacks."""
        raise SystemExit('fastgen: typer is not installed: pip install "fastgen-kernels[train]"')
