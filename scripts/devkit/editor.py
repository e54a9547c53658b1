"""ComfyUI's editor in a real Chromium, driven through what a user has: a file dropped on the canvas, the Run button.

The one module of this folder that needs more than the standard library: playwright, which our environment has.
"""

import json
import re
import urllib.request
from pathlib import Path
from typing import Any, ClassVar

from playwright.sync_api import ConsoleMessage, Playwright, Response, sync_playwright

# answers that a fresh user profile gets, one line that the frontend always writes, and its question for the size of a
# model file that is missing here, which the server's policy forbids: no faults
EXPECTED = re.compile(r"/user\.css$|/api/userdata[?/]")
NOISE = re.compile(r"Failed to load resource|ComfyApp graph accessed before initialization|https://huggingface\.co/")

# the Run button is there and the start-up mask is gone; acting earlier leaves the mask up for ever
READY = """() => window.app?.vueAppReady && window.app.canvas && document.querySelector('[data-testid=queue-button]')
  && !document.querySelector('.p-blockui-mask')"""
LISTEN = """() => {
  window.stillmotionEnd = null;
  for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
    window.app.api.addEventListener(kind, event => { window.stillmotionEnd = {kind, detail: event.detail}; });
}"""
DROP = """([text, name]) => {
  const data = new DataTransfer();
  data.items.add(new File([text], name, {type: 'application/json'}));
  return data;
}"""
MISSING = """() => window.app.rootGraph._nodes
  .filter(node => !node.subgraph && !LiteGraph.registered_node_types[node.type]).map(node => node.type)"""
MESSAGES = """() => ['[data-testid=error-overlay]', '[role=dialog]', '[data-testid=error-dialog]', '.p-toast-message']
  .flatMap(place => [...document.querySelectorAll(place)])
  .map(element => element.innerText.trim().replace(/\\s+/g, ' ')).filter(Boolean)"""
ACTIVE = "() => window.app.extensionManager.workflow.activeWorkflow?.path"
SHOW_ALL = """() => {
  const canvas = window.app.canvas, graph = window.app.rootGraph, margin = 30, bar = 100, foot = 60;
  const boxes = [...graph._nodes, ...graph._groups].map(item => [item.pos[0], item.pos[1] - margin, ...item.size]);
  const [left, top] = [0, 1].map(side => Math.min(...boxes.map(box => box[side])) - margin);
  const [right, bottom] = [0, 1].map(side => Math.max(...boxes.map(box => box[side] + box[side + 2])) + margin);
  const width = window.innerWidth - bar, height = window.innerHeight - bar - foot;
  canvas.min_font_size_for_lod = 0;
  canvas.show_info = false;
  canvas.ds.scale = Math.min(1, width / (right - left), height / (bottom - top));
  canvas.ds.offset = [bar / canvas.ds.scale - left, bar / canvas.ds.scale - top];
  canvas.setDirty(true, true);
}"""
# animations draw the whole page sixty times a second, which without a GPU costs as much as the model that runs
STILL = "*, *::before, *::after { animation: none !important; transition: none !important; }"
# the page has had nothing to do a few times in a row
SETTLED = """() => new Promise(resolve => {
  let left = 5;
  const next = () => left-- ? requestIdleCallback(() => setTimeout(next, 50), {timeout: 2000}) : resolve(true);
  next();
})"""
LIMIT = """([name, value]) => {
  for (const node of window.app.rootGraph._nodes)
    for (const widget of node.widgets ?? [])
      if (widget.name === name && typeof widget.value === 'number') widget.value = Math.min(widget.value, value);
}"""


class Editor:
    """`with Editor(url, chromium) as editor:`; `problems` collects console errors, page errors and refused requests."""

    playwright: ClassVar[Playwright]
    running: ClassVar[int] = 0  # number of open editors

    def __init__(self, url: str, program: Path, size: tuple[int, int] = (1600, 900)):
        self.url, self.program, self.size = url, program, size
        self.problems: list[str] = []

    def __enter__(self) -> "Editor":
        # else a template browser and a map cover the canvas
        self._settings({"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False})
        options = ["--no-sandbox"]  # root, as in containers, has no sandbox
        self.browser = self._playwright().chromium.launch(executable_path=str(self.program), args=options)
        context = self.browser.new_context(viewport={"width": self.size[0], "height": self.size[1]})
        self.page = context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        self.page.on("response", self._response)
        self.open()
        return self

    def open(self) -> None:
        """Open the editor, or open it again, as on a reload of the page."""
        self.page.goto(self.url, wait_until="domcontentloaded", timeout=120_000)
        self.page.wait_for_function(READY, timeout=120_000)
        self.page.add_style_tag(content=STILL)
        self.page.evaluate(LISTEN)
        self.page.wait_for_timeout(1000)

    def _playwright(self) -> Playwright:
        """The one of this process: Playwright refuses to be started a second time beside itself."""
        if not Editor.running:
            Editor.playwright = sync_playwright().start()
        Editor.running += 1
        return Editor.playwright

    def __exit__(self, *error: object) -> None:
        self.browser.close()
        Editor.running -= 1
        if not Editor.running:
            Editor.playwright.stop()

    def drop(self, path: Path) -> None:
        """Drop a file on the canvas and wait until the editor shows it."""
        self.problems.clear()
        data = self.page.evaluate_handle(DROP, [path.read_text(encoding="utf-8"), path.name])
        where = {"dataTransfer": data, "clientX": self.size[0] // 2, "clientY": self.size[1] // 2}
        before = self.evaluate(ACTIVE)
        for event in ("dragenter", "dragover", "drop"):
            self.page.dispatch_event("#graph-canvas", event, where)
        # a second drop of the same file opens "name (2)"
        opened = f"([before, name]) => ({ACTIVE})() !== before && ({ACTIVE})().includes(name)"
        self.page.wait_for_function(opened, arg=[before, path.stem], timeout=20_000)
        self.evaluate(SETTLED)

    def setting(self, name: str, value: Any) -> None:
        """Change a setting of the editor, as its settings dialog does: it is applied at once and kept by the server."""
        self.evaluate("([name, value]) => window.app.extensionManager.setting.set(name, value)", [name, value])
        self.page.wait_for_timeout(1000)

    def evaluate(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def serialized(self) -> dict:
        """The graph as the editor would save it."""
        return self.evaluate("() => JSON.parse(JSON.stringify(window.app.rootGraph.serialize()))")

    def prompt(self) -> dict:
        """The graph in API form."""
        return self.evaluate("async () => (await window.app.graphToPrompt()).output")

    def missing_nodes(self) -> list[str]:
        return self.evaluate(MISSING)

    def messages(self, at_least: int = 0) -> list[str]:
        """What the editor tells its user in overlays, dialogs and toasts; waits until there are `at_least` so many."""
        if at_least:
            self.page.wait_for_function(f"({MESSAGES})().length >= {at_least}", polling=100, timeout=20_000)
        return self.evaluate(MESSAGES)

    def limit(self, name: str, value: float) -> None:
        """Lower every widget of this name to `value`, if it is higher."""
        self.evaluate(LIMIT, [name, value])

    def run(self, timeout: float = 300) -> dict:
        """Press Run and wait: {"kind": "execution_success", ..._error, ..._interrupted or "refused", "detail"}."""
        self.evaluate("() => { window.stillmotionEnd = null; }")
        posted = lambda answer: answer.request.method == "POST" and answer.url.endswith("/prompt")  # noqa: E731
        with self.page.expect_response(posted, timeout=30_000) as answer:
            self.page.get_by_test_id("queue-button").click()
        if answer.value.status != 200:
            self.page.wait_for_timeout(500)
            return {"kind": "refused", "detail": answer.value.json()}
        # asked now and then: by default the question alone makes the page draw itself all the time
        self.page.wait_for_function("window.stillmotionEnd !== null", polling=100, timeout=timeout * 1000)
        self.evaluate(SETTLED)
        return self.evaluate("() => window.stillmotionEnd")

    def show_all(self) -> None:
        """Bring the whole graph into view, with its texts."""
        self.evaluate(SHOW_ALL)
        self.evaluate(SETTLED)

    def shot(self, path: Path) -> None:
        self.page.screenshot(path=str(path))

    def _settings(self, values: dict) -> None:
        data, header = json.dumps(values).encode(), {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/api/settings", data, header), timeout=30):
            pass

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not NOISE.search(message.text):
            self.problems.append(f"console: {message.text[:400]}")

    def _response(self, answer: Response) -> None:
        if answer.status >= 400 and not EXPECTED.search(answer.url):
            self.problems.append(f"HTTP {answer.status}: {answer.url}")
