"""The labelling page in a browser, as a person handles it."""

from collections.abc import Callable
from typing import Any

from tests.workshop.label.served import Served


class Page:
    """What a person can do with the page, and see of it."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def open(self, served: Served) -> None:
        """Go to the page; a page that is open is left first, for addresses differ after # alone."""
        self.browser.get("about:blank")
        self.browser.get(served.address)
        self.wait(lambda: not self.text("progress-text").startswith("Loading"))

    def wait(self, seen: Callable[[], bool]) -> None:
        """Until something is seen."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.browser, 20, poll_frequency=0.01).until(lambda _: seen())

    def text(self, element: str) -> str:
        """What an element says, hidden or not."""
        found: str = self.browser.execute_script(
            "return document.getElementById(arguments[0]).textContent", element
        )
        return found

    def press(self, *keys: str) -> None:
        """Keys, wherever the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.browser, duration=0).send_keys(*keys).perform()

    def hold(self, modifier: str, key: str) -> None:
        """A key while a modifier is held."""
        from selenium.webdriver import ActionChains

        actions = ActionChains(self.browser, duration=0)
        actions.key_down(modifier).send_keys(key).key_up(modifier).perform()

    def decide(self, key: str) -> None:
        """Press a key that ends in a new state, and wait for it."""
        revision = self.revision()
        self.press(key)
        self.wait(lambda: self.revision() > revision)

    def revision(self) -> int:
        """Of the state shown."""
        found: int = self.browser.execute_script("return busy ? -1 : state.revision")
        return found

    def hints(self) -> list[str]:
        """The keys that buttons name."""
        keys = self.browser.find_elements("css selector", "#actions kbd")
        return [key.text for key in keys if key.is_displayed()]

    def run(self, script: str) -> Any:
        """The value of an expression of the page's own language."""
        return self.browser.execute_script(f"return {script}")

    def click(self, element: str, times: int = 1) -> None:
        """A click of the mouse, or a double click, in the middle of an element."""
        from selenium.webdriver import ActionChains

        actions = ActionChains(self.browser, duration=0)
        actions.move_to_element(self.browser.find_element("id", element))
        for _ in range(times):
            actions.click()
        actions.perform()

    def drag(self, element: str, right: int) -> None:
        """Pull the mouse from an element's lower edge, where there is no text."""
        from selenium.webdriver import ActionChains

        place = self.browser.find_element("id", element)
        actions = ActionChains(self.browser, duration=0)
        actions.move_to_element_with_offset(place, 0, place.size["height"] // 2 - 5)
        actions.click_and_hold().move_by_offset(right, 0).release().perform()

    def focused(self) -> str:
        """Id of what has the focus."""
        found: str = self.browser.execute_script("return document.activeElement.id")
        return found


def set_media(browser: Any, scheme: str = "light") -> None:
    """Colours, and no motion: then nobody waits to see which card was chosen."""
    media = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in media.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
