"Build every page up to where Quarto takes over: fails on a page that cannot be built."

import re
from pathlib import Path

import nbformat
import yaml
from nbdev.config import get_config
from nbdev.serve import proc_nbs

LINK = re.compile(r"\]\((?!\w+:|#|/)([^)\s#]+)")


def pages_of(folder: Path) -> list[Path]:
    "Notebooks that become pages."
    found = sorted(folder.rglob("*.ipynb"))
    return [p for p in found if not re.search(r"(^|/)[._]", str(p.relative_to(folder)))]


def sidebar(nbs: Path, entries: list[str]) -> list[str]:
    "Sidebar entries without a page and pages without an entry."
    bad = [f"nothing matches {g}" for g in entries if not list(nbs.glob(g))]
    shown = {p for g in entries for p in nbs.glob(g)}
    every = [p for p in pages_of(nbs) if p not in shown]
    return bad + [f"{p} is in no section of the sidebar" for p in every]


def page(source: Path, staged: Path) -> list[str]:
    "What is wrong with one page: saved errors and links that lead nowhere."
    if not staged.exists():
        return [f"{source}: not built"]
    bad = []
    for c in nbformat.read(staged, 4).cells:
        errors = [o for o in c.get("outputs", []) if o.output_type == "error"]
        bad += [f"{source}: saved error in cell {c.id}: {o.evalue}" for o in errors]
    for c in nbformat.read(source, 4).cells:
        if c.cell_type == "markdown":
            dead = [
                t for t in LINK.findall(c.source) if not (source.parent / t).exists()
            ]
            bad += [f"{source}: link to {t}, which is not there" for t in dead]
    return bad


def main() -> int:
    nbs = get_config().nbs_path
    site = yaml.safe_load(Path("_quarto.yml").read_text())["website"]
    listed = re.findall(r"[\w./*-]+\.ipynb|[\w-]+/\*", yaml.dump(site["sidebar"]))
    bad, sources = sidebar(nbs, listed), pages_of(nbs)
    try:
        built = Path(proc_nbs(nbs, n_workers=2, force=True))
        bad += [b for p in sources for b in page(p, built / p.relative_to(nbs))]
    except Exception as e:  # whatever a page raised while it was built
        bad.append(str(e))
    print("\n".join(bad + [f"{len(sources)} pages, {len(bad)} problems"]))
    return min(len(bad), 1)


if __name__ == "__main__":
    raise SystemExit(main())
