"Write README.md from the text of nbs/index.ipynb: python tests/readme.py"

import re

from tree import NBS, ROOT, cells


def index() -> str:
    "The text of the front page, directives dropped."
    found = [c["source"].strip() for c in cells(NBS / "index.ipynb", "markdown")]
    return "\n\n".join(re.sub(r"^#\|.*\n", "", s) for s in found) + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(index())
