"""Draws docs/report.png, the page about the committed demo: `python docs/report_picture.py`.

It needs `apt install chromium chromium-driver` and `pip install selenium`.
"""

import sys
import time
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from ntkprobe.report import make_report

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "benchmarks"))

COLOURS = 64  # of the picture, which makes it a third of the size


def main() -> None:
    """Write the picture."""
    from support.headless import chromium, opened

    with TemporaryDirectory() as place, chromium(1240, 1000) as driver:
        page = make_report([HERE.parent / "figures/demo"]).save(Path(place) / "report.html")
        ready = "document.body.dataset.ready === 'yes'"
        opened(driver, page, ready, "view=training&theme=light&step=80")
        driver.execute_script("document.querySelector('.maps').scrollIntoView({block: 'end'})")
        time.sleep(1)
        with Image.open(BytesIO(driver.get_screenshot_as_png())) as picture:
            small = picture.convert("RGB").quantize(COLOURS)
            small.save(HERE / "report.png", optimize=True)


if __name__ == "__main__":
    main()
