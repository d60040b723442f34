"""How fastgen's compiled module, `fastgen._C`, is built. Not part of the installed package.

    settings.py    what the environment asks for: FASTGEN_BUILD, FASTGEN_CUDA_ARCHS, MAX_JOBS, ...
    discover.py    what the machine has: torch's headers, compilers, the CUDA toolkit, CUTLASS
    steps.py       one compilation as a value, a cache by content, and running many at once
    listing.py     what ptxas says of each kernel: registers, shared memory, stack, spills
    module.py      the whole module from these parts, and the record of what is in it
    disassembly.py what the machine code shows: width of loads, tensor-core instructions
    budgets.py     what each kernel may use, as committed in tests/csrc/budgets.json
    placing.py     puts the module and the record into the package
    commands.py    the setuptools commands that setup.py uses

Why not torch.utils.cpp_extension: it must import torch, which would make torch a build requirement
(gigabytes under pip's build isolation), and it refuses CUDA sources beside a CPU build of torch.
Our operators use the stable ABI and our CUDA files no torch header at all, so neither is needed.

`python -m build_support` builds in place without pip or setuptools.
"""
