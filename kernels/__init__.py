"""Triton kernels, one file per operation, named after it. Imported as `fastgen.kernels`.

The folder lies at the root of the repository and is reached through the link fastgen/kernels, so
the files import each other relatively. Importing one needs Triton; nothing above imports one before
its kernels are wanted, and `import fastgen` never does.
"""

from __future__ import annotations

if __name__ == "kernels":
    raise ImportError(
        "import fastgen.kernels; 'kernels' at the top level is another package's name"
    )
