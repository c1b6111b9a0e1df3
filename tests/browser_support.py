"""A headless Chromium driven by the W3C WebDriver protocol, which ChromeDriver speaks as plain JSON over HTTP."""

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
# The protocol's name for the field that holds an element.
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One open window."""

    def __init__(self, address):
        self._address = address
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        options = {"binary": CHROMIUM, "args": arguments}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        started = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{started['sessionId']}"

    def post(self, command, **values):
        """Sends a command of the session."""
        return self._send("POST", f"{self._session}/{command}", values)

    def open(self, address):
        self.post("url", url=address)

    def run(self, script, *arguments):
        """What a function's body returns."""
        return self.post("execute/sync", script=script, args=arguments)

    def click(self, selector):
        self.post(f"element/{self._find(selector)}/click")

    def write(self, selector, text):
        self.post(f"element/{self._find(selector)}/value", text=text)

    def messages(self):
        """What the console was reported since the last call, warnings and refused requests included."""
        return [entry["message"] for entry in self.post("se/log", type="browser")]

    def set_media(self, **features):
        """Emulates a medium ("screen", "print") or features such as a dark colour scheme."""
        media = features.pop("media", "")
        features = [
            {"name": name.replace("_", "-"), "value": value} for name, value in features.items()
        ]
        parameters = {"media": media, "features": features}
        self.post("goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params=parameters)

    def set_size(self, width, height):
        parameters = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.post("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=parameters)

    def screenshot(self):
        """PNG bytes of what the window shows."""
        return base64.b64decode(self._send("GET", f"{self._session}/screenshot"))

    def close(self):
        self._send("DELETE", self._session)

    def _find(self, selector):
        return self.post("element", using="css selector", value=selector)[_ELEMENT]

    def _send(self, method, path, values=None):
        body = None if values is None else json.dumps(values).encode()
        request = urllib.request.Request(self._address + path, body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(json.load(error)["value"]["message"]) from None


@contextlib.contextmanager
def opened_browser():
    """A browser for the length of a block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [DRIVER, f"--port={port}", "--silent"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
            browser = Browser(f"http://127.0.0.1:{port}")
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()
