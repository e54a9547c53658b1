"""A client of a ComfyUI server: it queues an API prompt, follows the execution and downloads the files."""

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .files import Failed
from .websocket import WebSocket

ENDS = {"execution_success": "success", "execution_error": "error", "execution_interrupted": "interrupted"}


class Rejected(Failed):
    """The server refused the prompt. `node_errors`: {node id: {"class_type", "errors": [...]}}."""

    def __init__(self, body: dict):
        self.error, self.node_errors = body.get("error") or {}, body.get("node_errors") or {}
        # the server repeats an error for each argument and each output
        messages = dict.fromkeys(
            f"{node['class_type']} (node {number}): {error['details'] or error['message']}"
            for number, node in self.node_errors.items()
            for error in node["errors"]
        )
        super().__init__(
            "ComfyUI refused the workflow. " + ("; ".join(messages) or str(self.error.get("message", body)))
        )


@dataclass
class Run:
    """The result of one prompt. `status`: success, error, interrupted, timeout or disconnected."""

    prompt_id: str
    status: str = "timeout"
    seconds: float = 0.0
    error: dict | None = None
    dropped: dict = field(default_factory=dict)  # output nodes that the server refused, while others were executed
    events: list[dict] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    outputs: dict = field(default_factory=dict)

    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    def data(self, kind: str) -> list[dict]:
        return [event["data"] for event in self.events if event["type"] == kind]

    def files(self) -> list[dict]:
        """Every {filename, subfolder, type} in the outputs, under any key."""
        lists = [items for output in self.outputs.values() for items in output.values() if isinstance(items, list)]
        return [item for items in lists for item in items if isinstance(item, dict) and "filename" in item]

    def results(self) -> list[dict]:
        """The saved files, without the temporary images that nodes display."""
        return [item for item in self.files() if item.get("type") == "output"]

    def check(self) -> "Run":
        """Raise Failed with a clear message unless the run was successful."""
        if self.dropped:
            raise Rejected({"node_errors": self.dropped})
        if self.status == "error" and self.error:
            message = str(self.error.get("exception_message", "")).strip()
            raise Failed(f"{self.error.get('node_type')} (node {self.error.get('node_id')}) failed: {message}")
        if self.status != "success":
            raise Failed(f"the run was not successful: {self.status}")
        return self


class Client:
    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.client_id = uuid.uuid4().hex

    def request(self, path: str, data: dict | None = None) -> dict:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            raw = answer.read()
        return json.loads(raw) if raw else {}

    def submit(self, prompt: dict, extra_data: dict | None = None) -> tuple[str, dict]:
        """Queue a prompt. Returns its id, and the errors of output nodes that are not executed."""
        payload = {"prompt": prompt, "client_id": self.client_id, "extra_data": extra_data or {}}
        try:
            answer = self.request("/prompt", payload)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            try:
                body = json.loads(text)
            except json.JSONDecodeError:
                raise Failed(f"ComfyUI refused the prompt with HTTP status {error.code}: {text[:300]}") from None
            raise Rejected(body) from None
        return answer["prompt_id"], answer.get("node_errors") or {}

    def interrupt(self) -> None:
        self.request("/interrupt", {})

    def history(self, prompt_id: str) -> dict | None:
        return self.request(f"/history/{prompt_id}").get(prompt_id)

    def run(
        self,
        prompt: dict,
        *,
        timeout: float = 600,
        on_event: Callable[[dict], None] | None = None,
        extra_data: dict | None = None,
    ) -> Run:
        """Queue a prompt and follow it until it ends."""
        address = self.url.replace("http", "ws", 1) + f"/ws?clientId={self.client_id}"
        stream, start_time = WebSocket(address, timeout), time.monotonic()
        try:
            prompt_id, node_errors = self.submit(prompt, extra_data)
            run = Run(prompt_id, dropped=node_errors)
            self._follow(stream, run, start_time + timeout, on_event)
        finally:
            stream.close()
        if run.status in ENDS.values():
            run.outputs = self._outputs(prompt_id)
        run.seconds = time.monotonic() - start_time
        return run

    def _follow(self, stream: WebSocket, run: Run, deadline: float, on_event: Callable[[dict], None] | None) -> None:
        while (remaining := deadline - time.monotonic()) > 0:
            stream.settimeout(remaining)
            try:
                message = stream.receive()
            except TimeoutError:
                return
            except ConnectionError:
                run.status = "disconnected"
                return
            if isinstance(message, bytes):
                run.previews.append(message)
                continue
            event = json.loads(message)
            if event.get("data", {}).get("prompt_id", run.prompt_id) != run.prompt_id:
                continue
            run.events.append(event)
            if on_event:
                on_event(event)
            if status := ENDS.get(event["type"]):
                run.status = status
                run.error = event["data"] if status == "error" else None
                return

    def _outputs(self, prompt_id: str) -> dict:
        for _ in range(100):  # the server writes the history shortly after the last event
            if record := self.history(prompt_id):
                return record["outputs"]
            time.sleep(0.05)
        return {}

    def fetch(self, item: dict, target: Path) -> Path:
        """Save one file of a run as `target`, which appears only when it is complete."""
        query = urllib.parse.urlencode({key: item.get(key, "") for key in ("filename", "subfolder", "type")})
        part = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with urllib.request.urlopen(f"{self.url}/view?{query}", timeout=60) as answer:
                part.write_bytes(answer.read())
            os.replace(part, target)
        except OSError as error:
            raise Failed(f"{target} could not be written: {error.strerror or error}") from None
        finally:
            part.unlink(missing_ok=True)
        return target
