"""The texts of the nodes in English and Chinese, as ComfyUI's editor loads them from locales/.

`--update-golden` writes the English files, and gives the Chinese ones the same keys; missing texts are then empty.
"""

import json
import re

import pytest
from bundle import locales

FILES = {"nodeDefs.json": locales.node_texts, "main.json": locales.other_texts}
CJK = re.compile(r"[\u4e00-\u9fff]")
# Texts that may be the same in Chinese: names of methods, symbols, words that ComfyUI's own translation leaves as is.
NAMES = re.compile(r"[\w .+/-]*", flags=re.ASCII)


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, schemas) -> tuple[str, dict]:
    """Name of a file, and its English texts as the schemas have them."""
    name = request.param
    english = FILES[name](schemas)
    if request.config.getoption("--update-golden"):
        locales.write("en", name, english)
        locales.write("zh", name, locales.like(english, locales.read("zh", name)))
    return name, english


def test_the_english_texts_are_those_of_the_schemas(file):
    name, english = file
    assert locales.read("en", name) == json.loads(json.dumps(english))


def test_chinese_has_a_text_for_every_english_one_and_no_others(file):
    name, english = file
    chinese = locales.flat(locales.read("zh", name))
    assert chinese.keys() == locales.flat(english).keys()
    assert [path for path, text in chinese.items() if not text.strip()] == []


def test_chinese_sentences_are_chinese(file):
    """Short names may be the same in both languages. Sentences must be translated: a name in them has fewer characters
    than the Chinese text."""
    name, _ = file
    chinese = locales.flat(locales.read("zh", name))
    for path, text in chinese.items():
        if path.endswith(("tooltip", "description")):
            assert len(CJK.findall(text)) >= 4, path
            assert len(CJK.findall(text)) / len(re.sub(r"[\w./:=-]+", "x", text, flags=re.ASCII)) > 0.3, (
                f"{path}: {text}"
            )
        else:
            assert CJK.search(text) or NAMES.fullmatch(text), path
    named = [path for path, text in chinese.items() if path.endswith("name")]
    translated = [path for path in named if CJK.search(chinese[path])]
    assert len(translated) >= 0.7 * len(named)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_text_holds_a_sign_of_the_message_syntax(language: str):
    """With `|` only the part before it would be shown; `{`, `}` and `@` would not compile."""
    for name in FILES:
        for path, text in locales.flat(locales.read(language, name)).items():
            assert not set(text) & set(locales.SYNTAX), f"{language}/{name}: {path}"


def test_every_type_of_socket_of_ours_has_a_name(schemas):
    sockets = [socket.io_type for schema in schemas for socket in (*schema.inputs, *schema.outputs)]
    assert {kind for kind in sockets if kind.startswith("STILLMOTION_")} == set(locales.TYPES)
