"""A page of the explorer in a real browser."""

import numpy as np

from moe_probe import dynamic

TEXTS = [
    "The bank of the river was soft after the rain.",
    "def area(r):\n    return (3.14 * (r ** 2))\n\nprint(area(4))",
    "12 * 3 = 36\n(4 + 5) * (2 - 1) = 9",
    "<b>bold</b> & <script>alert(1)</script> <img src=x onerror=alert(2)>",
]
LABELS = ["prose", "code", "arithmetic", "<i>markup</i>"]


class Opened:
    """A page in a browser, and what the browser said about it."""

    def __init__(self, browser, path, width=1400, height=900, scheme="light", address=""):
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.path, self.problems, self.requests = path, [], []
        self.page = self.context.new_page()
        self.page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append(dialog.message) or dialog.dismiss())
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri() + address)
        self.wait()

    def wait(self):
        self.page.wait_for_selector("body[data-ready=true]", timeout=60_000)

    def act(self, react):
        """Do something that changes what is shown, and wait until it is shown."""
        before = self.page.get_attribute("body", "data-shown")
        react()
        self.page.wait_for_function("before => document.body.dataset.shown !== before", arg=before)

    def press(self, *keys):
        for key in keys:
            self.act(lambda key=key: self.page.keyboard.press(key))

    def focus_text(self):
        self.page.keyboard.press("t")

    def slide(self, layer):
        """Move the slider by keyboard until the layer is shown."""
        self.page.focus("#layer")
        while (shown := int(self.page.get_attribute("body", "data-layer"))) != layer:
            self.press("ArrowRight" if layer > shown else "ArrowLeft")

    def rows(self, region):
        """What a table shows, row by row."""
        table = self.page.get_by_role("region", name=region, exact=True)
        return table.locator("tbody tr").evaluate_all(
            "rows => rows.map(row => [...row.cells].map(cell => cell.textContent.trim()))"
        )

    @property
    def address(self):
        return self.page.evaluate("location.hash")


class Routed:
    """A trace of a model on the texts, and its rows."""

    def __init__(self, name, folder):
        dynamic.routing_trace(f"ckpt/{name}", TEXTS, path=folder / "trace", labels=LABELS, progress=False)
        self.name, self.trace = name, dynamic.read_trace(folder / "trace")
        self.frame = self.trace.to_dataframe()
        self.starts = np.cumsum([0, *(len(document.ids) for document in self.trace.corpus.documents)])
        self.frame["token"] = self.starts[self.frame.document] + self.frame.position

    def choices(self, layer, token, subtoken=0):
        """The rows of a token, the first choice first."""
        chosen = self.frame.query(f"layer == {layer} and token == {token} and subtoken == {subtoken}")
        return chosen.sort_values("rank")
