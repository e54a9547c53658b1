"""The template browser as a newcomer opens it: our cards, their moving thumbnails, and a click that opens the graph."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from devkit import workflow
from devkit.editor import Editor

pytestmark = pytest.mark.browser

TEMPLATES = list(workflow.templates().values())
CARDS = """() => [...document.querySelectorAll('[data-testid^="template-workflow-"]')].map(card => {
  const image = card.querySelector('img');
  return {name: card.dataset.testid.slice('template-workflow-'.length), text: card.innerText,
    width: image?.complete ? image.naturalWidth : 0};
})"""


@pytest.fixture
def browser(editor: Editor) -> Iterator[Editor]:
    """The editor with the template browser open at the pack's own list."""
    editor.problems.clear()
    editor.page.get_by_role("button", name="Templates").first.click()
    editor.page.get_by_text("StillMotion", exact=True).or_(editor.page.get_by_text("comfyui-stillmotion")).first.click()
    editor.page.wait_for_timeout(4000)  # thumbnails are loaded as they come into view
    yield editor
    editor.page.keyboard.press("Escape")


def test_every_template_has_a_card_and_the_first_opens(browser: Editor, shots: Path):
    browser.shot(shots / "templates.png")
    cards = {card["name"]: card for card in browser.evaluate(CARDS)}
    assert list(cards)
    assert set(cards) <= {template.title for template in TEMPLATES}
    for title, card in cards.items():
        assert title in card["text"]
    visible = [card for card in cards.values() if card["width"]]
    assert len(visible) >= 4
    assert all(card["width"] == 256 for card in visible), "the picture of the template, not the editor's own for none"

    first = browser.page.get_by_test_id(f"template-workflow-{TEMPLATES[0].title}")
    first.scroll_into_view_if_needed()
    browser.page.wait_for_timeout(1500)
    picture = first.locator("img").first
    early = picture.screenshot()
    browser.page.wait_for_timeout(600)
    assert picture.screenshot() != early, "the thumbnail moves"
    first.click()
    browser.page.wait_for_function(f"() => ({ACTIVE})()?.includes({TEMPLATES[0].title!r})", timeout=20_000)
    browser.page.wait_for_timeout(1000)
    assert browser.missing_nodes() == []
    assert browser.problems == []


ACTIVE = "() => window.app.extensionManager.workflow.activeWorkflow?.path"
