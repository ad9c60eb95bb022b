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

COLOURS = 255  # of the picture, which makes it a third of the size
WIDTH = 900  # of the picture; the page is wider


def main() -> None:
    """Write the picture."""
    from support.headless import chromium, opened

    with TemporaryDirectory() as place, chromium(1240, 1000) as driver:
        page = make_report([HERE.parent / "figures/demo"]).save(Path(place) / "report.html")
        ready = "document.body.dataset.ready === 'yes'"
        opened(driver, page, ready, "view=training&theme=light&step=80")
        height = driver.execute_script("return document.querySelector('footer').offsetTop")
        size = {"width": 1240, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        time.sleep(1)
        with Image.open(BytesIO(driver.get_screenshot_as_png())) as picture:
            small = picture.convert("RGB")
            small.thumbnail((WIDTH, 10 * WIDTH))
            small.quantize(COLOURS).save(HERE / "report.png", optimize=True)


if __name__ == "__main__":
    main()
