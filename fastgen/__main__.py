"""``python -m fastgen`` is the command line."""

from fastgen.cli import main

main()
