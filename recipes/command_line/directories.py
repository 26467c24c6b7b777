"""Takes back what Hydra writes before a job begins, if the job is refused or only looks.

Hydra makes the run directory, with `.hydra` in it, and a sweep's with `multirun.yaml`, before our code can say that
nothing is to be run. A callback of Hydra's notes what was there before. Only directories that are empty again are
removed, and files that were there get their old contents back: a refusal leaves the directory of a run as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

CALLBACK = "+hydra.callbacks.made._target_=recipes.command_line.directories.Note"
HYDRA, FILES, SWEEP = ".hydra", ("config.yaml", "hydra.yaml", "overrides.yaml"), "multirun.yaml"


class Made:
    """Remembers what was there before Hydra wrote, and takes back what Hydra wrote.

    Attributes:
        noted: whether a run or sweep was composed and is about to write.
    """

    def __init__(self) -> None:
        self.noted = False
        self._absent: set[Path] = set()  # the base and directories above it that did not exist
        self._before: dict[Path, tuple[int, int]] = {}  # all below the base -> when it changed, bytes
        self._contents: dict[Path, bytes] = {}  # of Hydra's own files
        self._base = Path()
        self._sweep = False
        self._subdir: str | None = None

    def note(self, base: Path, *, sweep: bool, subdir: str | None) -> None:
        """Look at a directory that Hydra is about to make, or to write into.

        Args:
            base: the directory of the run or of the sweep.
            sweep: whether it is a sweep's.
            subdir: name of Hydra's own folder in it (`hydra.output_subdir`); None if Hydra writes none.
        """
        self.noted, self._base, self._sweep, self._subdir = True, base, sweep, subdir
        self._absent = {path for path in (base, *base.parents) if not path.exists()}
        if (base / SWEEP).is_file():
            self._contents[base / SWEEP] = (base / SWEEP).read_bytes()
        if subdir is None:  # Hydra writes no more than the directory itself, which may be the one it is started in
            return
        for path in base.rglob("*"):
            stat = path.stat(follow_symlinks=False)
            self._before[path] = (stat.st_mtime_ns, stat.st_size) if path.is_file() else (0, 0)
            if path.parent.name == subdir and path.name in FILES:
                self._contents[path] = path.read_bytes()

    def forget_job(self, *, code: int, dry: bool) -> None:
        """Take back what Hydra wrote for the job that now ends, if it was refused or dry and wrote nothing itself.

        Args:
            code: the job's exit code; 2 if it was refused.
            dry: whether it only looked (`dry_run=true`).
        """
        if not self.noted or self._subdir is None:
            return
        out = Path(HydraConfig.get().runtime.output_dir)
        if not (code == 2 or (dry and code == 0)) or self._changed(out):
            return
        for name in FILES:
            self._restore(out / self._subdir / name)
        self._remove_empty(out / self._subdir)

    def forget_sweep(self) -> None:
        """Take back what Hydra wrote for a sweep whose jobs wrote nothing, or that keeps no record of itself."""
        if self.noted and self._sweep and (self._subdir is None or not self._changed(self._base)):
            self._restore(self._base / SWEEP)
            self._remove_empty(self._base)

    def _changed(self, out: Path) -> bool:
        """Whether files below a directory, Hydra's own aside, were not there before or were different."""
        for path in out.rglob("*"):
            if not path.is_file() or path.parent.name == self._subdir or path == self._base / SWEEP:
                continue
            stat = path.stat(follow_symlinks=False)
            if self._before.get(path) != (stat.st_mtime_ns, stat.st_size):
                return True
        return False

    def _restore(self, file: Path) -> None:
        if file in self._contents:
            file.write_bytes(self._contents[file])
        elif file.exists():
            file.unlink()

    def _remove_empty(self, directory: Path) -> None:
        """Remove a directory and those above it, as far as they are empty and were not there before."""
        for path in (directory, *directory.parents):
            new = path in self._absent or (self._base in path.parents and path not in self._before)
            if not new or not path.is_dir() or any(path.iterdir()):
                return
            path.rmdir()


WATCHED: list[Made] = []  # of this process's command; a sweep's jobs that run elsewhere have none


class Note(Callback):
    """Hydra's callback: tells `Made` where Hydra is about to write."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra's hook before a single job: notes the job's directory."""
        self._note(config, "hydra.run.dir", sweep=False)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra's hook before a sweep: notes the sweep's directory."""
        self._note(config, "hydra.sweep.dir", sweep=True)

    def _note(self, config: DictConfig, key: str, *, sweep: bool) -> None:
        HydraConfig.instance().set_config(config)  # as Hydra does next: the directory's name may ask for it
        for made in WATCHED:
            made.note(
                Path(str(OmegaConf.select(config, key))).absolute(), sweep=sweep, subdir=config.hydra.output_subdir
            )
