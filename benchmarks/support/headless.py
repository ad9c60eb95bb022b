"""Debian's Chromium without a window: opens pages and says what the clock and its CPU say."""

import os
import shutil
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil


@contextmanager
def chromium(width: int = 1400, height: int = 1000) -> Generator[Any]:
    """Yield a driver of a browser with one window.

    Args:
        width: of the window.
        height: of the window.

    Yields:
        Selenium's driver.
    """
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or sys.exit("apt install chromium")
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--window-size={width},{height}")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(600)
    driver.set_page_load_timeout(600)
    try:
        yield driver
    finally:
        driver.quit()


def busy(driver: Any) -> float:
    """Return the CPU seconds so far of the processes that run pages, which count in 1/100 s."""
    total = 0.0
    for process in psutil.Process(driver.service.process.pid).children(recursive=True):
        with suppress(psutil.Error):
            if "--type=renderer" in process.cmdline():
                total += sum(process.cpu_times()[:2])
    return total


def opened(driver: Any, page: Path, ready: str, fragment: str = "") -> tuple[float, float]:
    """Open a page, and return seconds until it is ready, by the clock and by its CPU.

    Args:
        driver: the browser.
        page: a file.
        ready: JavaScript that returns whether the page is ready.
        fragment: of its address.

    Returns:
        Seconds by the clock, and of CPU.
    """
    driver.get("about:blank")
    before, start = busy(driver), time.perf_counter()
    driver.get(f"file://{page}#{fragment}")
    while not driver.execute_script(f"return Boolean({ready})"):
        time.sleep(0.005)
    return time.perf_counter() - start, busy(driver) - before


def answered(driver: Any, action: str, *arguments: Any) -> tuple[float, float]:
    """Run JavaScript, and return seconds until the next picture after it, by the clock and CPU."""
    before = busy(driver)
    script = (
        "const done = arguments[arguments.length - 1]; const start = performance.now();"
        f"{action};"
        "requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)))"
    )
    clock = driver.execute_async_script(script, *arguments) / 1000
    return clock, busy(driver) - before


def what_else_ran() -> str:
    """Return how busy the machine is, in a sentence."""
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    others = "the machine was otherwise idle" if load < 0.5 * cores else "other programs ran"
    return f"{cores} cores, load average {load:.1f} before the run: {others}."
