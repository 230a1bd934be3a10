"""Take the README's screenshots from a nightly run: ``make pictures``, or ``python docs/pictures/make.py RUN``.

green.png is the page of a cell at parity, red.png that of a red control, index.png the index of the run; of a run that
diverged, diverged.png is the page of the cell and trace.png that of its trace. Needs Chromium (Debian: ``chromium``).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from parity_lib.base.names import Outcome
from parity_lib.records.night_record import load_night

HERE = Path(__file__).resolve().parent
NIGHTLY = HERE.parents[1] / "reports" / "nightly"
WIDTH = 1180  # of the window, in CSS pixels


def newest() -> Path:
    """Return the newest nightly run of this checkout."""
    runs = sorted(path.parent for path in NIGHTLY.glob("*/night.json"))
    if not runs:
        sys.exit(f"{NIGHTLY} holds no nightly run; next: make nightly")
    return runs[-1]


def shoot(page: Path, name: str, height: int) -> None:
    """Write a picture of the first ``height`` pixels of a page, in few colours where pngquant is there."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        sys.exit("chromium is not on the PATH; next: apt-get install chromium")
    target = HERE / name
    size = ["--hide-scrollbars", f"--window-size={WIDTH},{height}", f"--screenshot={target}"]
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", *size, page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    if shutil.which("pngquant"):
        subprocess.run(["pngquant", "--force", "--ext", ".png", "48", str(target)], check=True)
    sys.stdout.write(f"{target}: {target.stat().st_size / 1000:.0f} kB\n")


def main(run: Path) -> None:
    """Take the pictures of what a nightly run holds: a cell at parity, a red control, its index, a trace."""
    drawn = [c for c in load_night(run).cells if c.html and c.outcome is not Outcome.INCOMPLETE]
    drawn.sort(key=lambda cell: cell.cell.model.startswith("synthetic"))  # trained models first
    green = [cell for cell in drawn if cell.outcome is Outcome.PARITY]
    controls = [cell for cell in drawn if cell.control]
    red = [cell for cell in drawn if cell.outcome is Outcome.DIVERGED and not cell.control]
    for cells, name in ((green, "green.png"), (controls, "red.png"), (red, "diverged.png")):
        if cells:
            shoot(run / cells[0].html, name, 1000)
    if green:
        shoot(run / "index.html", "index.png", 900)
    for page in sorted(run.glob("cells/*/trace/03_trace.html"))[:1]:
        shoot(page, "trace.png", 1500)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else newest())
