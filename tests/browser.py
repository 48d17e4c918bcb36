"""Drives a real browser, where there is one: Debian's chromium with chromium-driver."""

import contextlib
import json
import shutil
import time

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRIVER = "chromedriver"
# Keys, as WebDriver names them (https://www.w3.org/TR/webdriver2/#keyboard-actions).
LEFT, RIGHT, DOWN = "\ue012", "\ue014", "\ue015"


@contextlib.contextmanager
def open_browser(downloads, width=1200, height=800, dark=False):
    """A headless browser with a window of so many pixels; a test without one is skipped.

    Args:
      downloads: the folder for what it downloads.
      width, height: of the window; below 500 pixels it is a phone's, which is touched.
      dark: whether the user has chosen dark mode.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser or not shutil.which(DRIVER):
        pytest.skip("there is no browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    # As root, without a GPU and in a container with little shared memory it starts only so.
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options, Service(shutil.which(DRIVER)))
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": width < 500})
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield driver
    finally:
        driver.quit()


def complaints(driver):
    """What the browser has logged since the last call: errors of scripts, what was not loaded."""
    return [json.dumps(entry) for entry in driver.get_log("browser")]


def wait_until(is_ready, seconds=30):
    """Returns once a function says that what is awaited is there."""
    deadline = time.monotonic() + seconds
    while not is_ready():
        assert time.monotonic() < deadline, "the page takes too long"
        time.sleep(0.05)
