"Puts nbs/ and settings.ini into the wheel as rlpapers/_nbs; see pyproject.toml."

from pathlib import Path
from shutil import copy2, rmtree

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
KEEP = {".ipynb", ".yaml", ".json", ".csv", ".npz", ".png", ".gz", ".txt", ".md"}


def package_data() -> dict[Path, Path]:
    "Each file that travels in the wheel and its place below rlpapers/_nbs."
    files = {ROOT / "settings.ini": Path("settings.ini")}
    for f in sorted((ROOT / "nbs").rglob("*")):
        name = f.relative_to(ROOT / "nbs")
        hidden = any(p.startswith((".", "_")) for p in name.parts)
        if f.is_file() and f.suffix in KEEP and not hidden:
            files[f] = name
    return files


class Build(build_py):
    def run(self):
        super().run()
        if self.editable_mode:
            return
        home = Path(self.build_lib, "rlpapers", "_nbs")
        rmtree(home, ignore_errors=True)  # build/ may hold files of an earlier build
        for f, name in package_data().items():
            to = home / name
            to.parent.mkdir(parents=True, exist_ok=True)
            copy2(f, to)


setup(cmdclass={"build_py": Build})
