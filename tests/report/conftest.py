import pytest
from browser_support import CHROMIUM, DRIVER, opened_browser


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium for the tests of a file."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("there is no Chromium with its ChromeDriver")
    with opened_browser() as opened:
        yield opened
