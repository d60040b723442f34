"""One compilation as a value, a cache by content, and running many at once.

The product of a step lies in a folder named after everything it depends on: the command, the
versions of the tools and foreign headers, the source, and the project's headers that it includes.
So a step whose folder is there is done, whatever the clock or the path of the tree says: a copy of
the tree, another branch and a second wheel reuse what was compiled before.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

KEPT = 4  # products kept for one source: switching between branches and settings stays quick

INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """One command that makes one folder.

    Attributes:
        name: what a person reads, mostly the source's path.
        folder: where the product lies, named after its content.
        product: the file in it that others use.
        command: the arguments; ``{product}`` and ``{folder}`` stand for paths in a scratch folder
            that becomes `folder` when the command has succeeded.
        keep: what else the command leaves there that is kept (a pattern); the rest is deleted.
    """

    name: str
    folder: Path
    product: str
    command: tuple[str, ...]
    keep: str = ""

    @property
    def output(self) -> Path:
        return self.folder / self.product

    @property
    def done(self) -> bool:
        return self.output.is_file()

    @property
    def log(self) -> str:
        """What the command printed."""
        return (self.folder / "log.txt").read_text(errors="replace")

    def script(self) -> str:
        """The step for `sh`. Nothing half-made ever lies at `folder`; of two that race one wins."""
        command = shlex.join(self.command)
        for mark, place in (("{product}", f"$scratch/{self.product}"), ("{folder}", "$scratch")):
            # shlex has quoted the braces; the shell is to put the scratch folder in.
            command = command.replace(shlex.quote(mark), f'"{place}"')
        kept = " ".join(f"! -name {shlex.quote(n)}" for n in (self.product, "log.txt", self.keep))
        final = shlex.quote(str(self.folder))
        return (
            f'scratch={final}.$$; mkdir -p "$scratch" && '
            f'if {command} > "$scratch/log.txt" 2>&1; then '
            f'find "$scratch" -type f {kept} -delete; '
            f'mv -T "$scratch" {final} 2> /dev/null || rm -rf "$scratch"; '
            'else cat "$scratch/log.txt"; rm -rf "$scratch"; exit 1; fi'
        )


class StepFailed(RuntimeError):
    """A step's command failed; `step` is the step, the message what the command printed."""

    def __init__(self, step: Step, output: str) -> None:
        super().__init__(f"{step.name} does not compile:\n{output.strip()}")
        self.step = step

    @property
    def first_line(self) -> str:
        """The first line that looks like an error: what a one-line message shows."""
        lines = [line.strip() for line in str(self).splitlines()[1:] if line.strip()]
        return next(
            (line for line in lines if "error" in line.lower()), (lines or ["no output"])[0]
        )


def digest(parts: Iterable[str]) -> str:
    joined = "\0".join(parts).encode()
    return hashlib.sha256(joined).hexdigest()[:16]


def included(source: Path, include: Path) -> list[Path]:
    """The source and every header of the project that it includes, however deep."""
    found: dict[Path, None] = {}
    pending = [source]
    while pending:
        path = pending.pop()
        if path in found:
            continue
        found[path] = None
        for name in INCLUDE.findall(path.read_text()):
            pending.extend(p for p in (path.parent / name, include / name) if p.is_file())
    return sorted(found)


def run(steps: Sequence[Step], root: Path, jobs: int, ninja: str | None) -> None:
    """Run the steps that are not done, `jobs` at a time, from the folder `root`.

    Raises:
        StepFailed: one failed; the others that were running are finished first.
    """
    missing = list({step.folder: step for step in steps if not step.done}.values())
    if not missing:
        return
    for step in missing:
        step.folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"fastgen: {len(missing)} files to compile, {jobs} at a time", flush=True)
    if ninja is not None and len(missing) > 1:
        _run_ninja(missing, root, jobs, ninja)
    else:
        _run_threads(missing, root, jobs)


def _run_threads(steps: Sequence[Step], root: Path, jobs: int) -> None:
    def one(step: Step) -> None:
        done = subprocess.run(
            ["sh", "-c", step.script()],
            cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode != 0:
            raise StepFailed(step, done.stdout)
        print(f"fastgen: {step.name}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(one, step) for step in steps]
        try:
            for future in running:
                future.result()
        except StepFailed:
            pool.shutdown(cancel_futures=True)
            raise


def _run_ninja(steps: Sequence[Step], root: Path, jobs: int, ninja: str) -> None:
    def escaped(text: str) -> str:
        return text.replace("$", "$$")

    def path(text: str) -> str:
        return escaped(text).replace(" ", "$ ").replace(":", "$:")

    lines = ["rule step", "  command = $script", "  description = $name"]
    for step in steps:
        lines += [
            f"build {path(str(step.output))}: step",
            f"  script = {escaped(step.script())}",
            f"  name = {escaped(step.name)}",
        ]
    with TemporaryDirectory(dir=steps[0].folder.parent, prefix="ninja.") as scratch:
        plan = Path(scratch, "build.ninja")
        plan.write_text("\n".join([f"builddir = {path(scratch)}", *lines]) + "\n")
        done = subprocess.run(
            [ninja, "-f", str(plan), "-j", str(jobs)],
            cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    if done.returncode != 0:
        failed = re.findall(r"^FAILED: (?:\[code=\d+\] )?(\S+)", done.stdout, re.MULTILINE)
        step = next((s for s in steps if str(s.output) in failed), steps[0])
        raise StepFailed(step, re.sub(r"^FAILED:.*\n.*\n", "", done.stdout, flags=re.MULTILINE))


def forget_old(folder: Path, used: Sequence[Step]) -> None:
    """Delete from `folder` all but the newest products of each source, and none that is `used`."""
    for step in used:
        step.folder.touch()
    families: dict[str, list[Path]] = {}
    for product in folder.iterdir():
        if match := re.fullmatch(r"(.+)-[0-9a-f]{16}", product.name):
            families.setdefault(match[1], []).append(product)
    kept = {step.folder for step in used}
    for products in families.values():
        products.sort(key=lambda product: product.stat().st_mtime, reverse=True)
        for product in products[KEPT:]:
            if product not in kept:
                shutil.rmtree(product, ignore_errors=True)
