"""Debian's browser without a window, what it complains of, and what it asks the network for."""

import json
import os
import shutil
import time

import pytest


def open_browser(downloads):
    """Return a driver, or skip where there is no browser; in CI that is a failure."""
    webdriver = pytest.importorskip("selenium.webdriver")
    found = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not all(found):
        reason = "no browser: apt install chromium chromium-driver"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    # Root, as in a container, has no sandbox of Chromium's; the pages are the tests' own.
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{argument}")
    options.add_argument("--window-size=1300,900")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(found[1])
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(60)
    return driver


def wait_for(condition, seconds=60):
    """Return the first true value of a condition; a slow machine is no failure."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


def requests(driver):
    """Return the addresses that were asked for since the last call, of whatever kind."""
    events = [json.loads(line["message"])["message"] for line in driver.get_log("performance")]
    sent = [e for e in events if e["method"] == "Network.requestWillBeSent"]
    return [event["params"]["request"]["url"] for event in sent]
