"""Which operators and which Python functions a piece of work calls."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode


class Operators(TorchDispatchMode):
    """Names of the operators that are called while it is on, namespace first."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


def functions(work: Callable[[], object], folder: str = "") -> Counter[str]:
    """How often each function or method of a folder's files runs, by its name, on the second run of
    the work; of any file unless a folder is given.
    """
    work()
    calls: Counter[str] = Counter()

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(folder):
            calls[frame.f_code.co_qualname] += 1

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls
