"""A browser, where there is one, and pages to look at."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workshop.label.page import Page, set_media
from tests.workshop.label.served import Served


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts `mlx_dpo data label` in a temporary folder; ends what is left at the end."""
    started: list[Served] = []

    def start(*args: str) -> Served:
        started.append(Served(tmp_path, *args))
        return started[-1]

    yield start
    for served in started:
        served.kill()


@pytest.fixture
def write_candidates(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows of candidates to a file."""

    def write(rows: list[dict[str, Any]], name: str = "candidates.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; skips where it, its driver or Selenium is not installed."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    # With the path given, Selenium does not look for a driver on the network.
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture
def page(browser: Any) -> Page:
    """An empty page, its logs forgotten."""
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get_log("browser")
    set_media(browser)
    return Page(browser)
