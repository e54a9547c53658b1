"""Writes the editor form and the thumbnail of every bundled workflow, and its API form as the editor exports it.

    python3 scripts/dev.py workflows [NAME ...]
    python3 scripts/dev.py workflows --graphs [NAME ...]    the graphs alone, without the thumbnails, which take minutes
    python3 scripts/dev.py workflows --blueprints           the subgraph blueprints in subgraphs/
    python3 scripts/dev.py workflows --metadata             pack, version and model addresses alone, without a browser

The API forms are the source: change a value there (or save from the editor as API), then run this; those of DreamVideo
come from devkit/dreamvideo.py. Titles, order and the sentence in the note come from workflows/templates.toml. Nodes are
put into columns, a node without a column is an error. Runs in the environment of dev.py, which names ComfyUI by
COMFYUI_DIR.
"""

import os
import sys
import tempfile
from pathlib import Path

from bundle import blueprints, thumbnails
from devkit import chromium, dreamvideo, metadata, workflow
from devkit.client import Client
from devkit.editor import Editor
from devkit.files import Failed
from devkit.server import Server, spare_threads

COLUMNS = {
    "Model": (
        "Note",
        "CheckpointLoaderSimple",
        "StillMotion_LoadPocket",
        "LoraLoaderModelOnly",
        "StillMotion_LoadMotionModel",
        "StillMotion_MotionLora",
        "StillMotion_LoadSparseCtrl",
        "StillMotion_LoadRetentionBranch",
        "StillMotion_LoadArtvModel",
        "StillMotion_TemporalDecoder",
        "StillMotion_LoadPocketLora",
        "PrimitiveInt",
    ),
    "Motion": (
        "ModelSamplingDiscrete",
        "StillMotion_ApplyMotionModel",
        "StillMotion_ModelSamplingBetas",
        "StillMotion_SteppedCFG",
        "StillMotion_MitigatingGradientOptions",
        "StillMotion_MitigatingGradient",
    ),
    "Prompt": (
        "StillMotion_PromptSchedule",
        "StillMotion_Story",
        "StillMotion_StagePrompts",
        "CLIPTextEncode",
        "EmptyLatentImage",
        "VAEEncode",
        "RepeatLatentBatch",
    ),
    "Image": ("StillMotion_PocketPicture", "LoadImage"),
    "Sketch": ("SolidMask", "MaskComposite", "BatchMasksNode", "MaskToImage", "Canny"),
    "Control": (
        "StillMotion_LoadPocketControlNet",
        "ControlNetApplyAdvanced",
        "StillMotion_ControlNetFrames",
        "StillMotion_ApplyImageRetention",
        "StillMotion_ApplySparseCtrl",
    ),
    "Noise": (
        "RandomNoise",
        "KSamplerSelect",
        "StillMotion_ReuseAndDiffuse",
        "CFGGuider",
        "StillMotion_DoubleConditionGuider",
        "BasicScheduler",
        "StillMotion_NoiseNormality",
    ),
    "Sampling": ("KSampler", "SamplerCustomAdvanced"),  # grows by the preview
    "Options": (
        "StillMotion_ReuseOptions",
        "StillMotion_AutoregressiveOptions",
        "StillMotion_StageOptions",
        "StillMotion_RenderAgain",
        "StillMotion_VideoOutputOptions",
    ),
    "Video": (  # grows by the video
        "StillMotion_LongVideo",
        "StillMotion_StagedVideo",
        "StillMotion_AutoregressiveVideo",
        "VAEDecode",
        "GetVideoComponents",
        "ImageScaleBy",
        "CreateVideo",
        "SaveVideo",
    ),
    "Readout": ("StillMotion_GuidanceReadout",),
    "Views": (
        "StillMotion_XTSlice",
        "StillMotion_VideoContinuity",
        "StillMotion_MitigatingGradientPlot",
        "StillMotion_MappingShift",
        "StillMotion_FrameTokenAttention",
        "StillMotion_ArtvMasks",
    ),
}
SIZES = {
    "CLIPTextEncode": [340, 140],
    "StillMotion_PromptSchedule": [340, 140],
    "StillMotion_Story": [340, 140],
    "StillMotion_StagePrompts": [340, 140],
    "Note": [350, 300],
    "StillMotion_PocketPicture": [350, 400],
    "StillMotion_GuidanceReadout": [480, 470],
    "StillMotion_XTSlice": [480, 420],
    "StillMotion_VideoContinuity": [480, 700],
    "StillMotion_MitigatingGradientPlot": [480, 420],
    "StillMotion_NoiseNormality": [480, 420],
    "StillMotion_MappingShift": [480, 420],
    "StillMotion_FrameTokenAttention": [480, 420],
    "StillMotion_ArtvMasks": [480, 560],
}
# below the widgets, where a render shows its frames; a text field takes what these leave
ROOM = dict.fromkeys(("StillMotion_LongVideo", "StillMotion_AutoregressiveVideo", "StillMotion_StagedVideo"), 290)
POCKET_NOTE = """The pocket model knows eight shapes (circle, square, triangle, star, cross, diamond, ring, heart) in \
eight colours (red, green, blue, yellow, orange, purple, cyan, pink). They move right, left, up, down or in a circle, \
or stand still, slowly or quickly, on a black, white or gray background, at night, over a green field or at sunset."""
SD15_NOTE = """Files that this graph needs:
{files}
Any SD1.5 checkpoint will do: choose yours in the loader. {choice}"""
MODULE_CHOICE = "So will any AnimateDiff motion module for SD1.5."
SD15_CARD = ("Your SD1.5", "checkpoint", "+ AnimateDiff module")

# the editor lays the nodes out as loadApiJson leaves them; this puts them into our columns, one group around each
ARRANGE = """([columns, sizes, room, note]) => {
  const graph = window.app.rootGraph, gap = 40, title = 30, pad = 20;
  const text = LiteGraph.createNode('Note');
  graph.add(text);
  text.title = 'About this graph';
  text.widgets[0].value = note;
  const left = new Set(graph._nodes);
  let x = 0;
  for (const [name, types] of Object.entries(columns)) {
    const nodes = types.flatMap(type => graph._nodes.filter(node => node.type === type));
    if (!nodes.length) continue;
    for (const node of nodes) if (sizes[node.type]) node.setSize(sizes[node.type]);
    const width = Math.max(...nodes.map(node => node.size[0]));
    let y = 0;
    for (const node of nodes) {
      node.setSize([width, node.size[1] + (room[node.type] ?? 0)]);
      node.pos = [x, y];
      y += node.size[1] + title + gap;
      left.delete(node);
    }
    const group = new LiteGraph.LGraphGroup(name);
    group.pos = [x - pad, -title - 2 * pad - 10];
    group.size = [width + 2 * pad, y - gap + 2 * pad + 10];
    graph.add(group);
    x += width + 2 * pad + gap;
  }
  for (const node of graph._nodes)
    for (const widget of node.widgets ?? [])
      if (widget.name === 'control_after_generate') widget.value = 'fixed';
  return [...left].map(node => node.type);
}"""


def arrange(editor: Editor, template: workflow.Template) -> None:
    """Write both forms of one workflow."""
    name = template.name
    prompt = dreamvideo.GRAPHS[name]() if name in dreamvideo.GRAPHS else workflow.load(name)
    editor.evaluate("([prompt, name]) => window.app.loadApiJson(prompt, name)", [prompt, name])
    editor.page.wait_for_timeout(1500)
    note = f"{template.about}\n\n{photo_note(prompt) if name.endswith('_sd15') else POCKET_NOTE}"
    if without := editor.evaluate(ARRANGE, [COLUMNS, SIZES, ROOM, note]):
        raise Failed(f"{name}: no column for {', '.join(without)}; add it to COLUMNS in {Path(__file__).name}")
    editor.show_all()
    exported, saved = editor.prompt(), editor.serialized()
    saved["extra"].pop("ds", None)  # where this canvas happened to look
    metadata.describe(saved)
    metadata.write(template.api_file, {key: exported[key] for key in sorted(exported, key=int)})
    metadata.write(template.editor_file, saved)


def photo_note(prompt: dict) -> str:
    """The files that a graph for a photo model needs."""
    files = [f"models/{model['directory']}/{model['name']}" for model in metadata.files_of(prompt)]
    return SD15_NOTE.format(files="\n".join(files), choice=MODULE_CHOICE if len(files) == 2 else "").strip()


def draw(client: Client, template: workflow.Template, folder: Path) -> None:
    """Write the thumbnail: what the workflow makes, or what it needs where we do not have that."""
    if template.name.endswith("_sd15"):
        thumbnails.save_card(template.thumbnail, *SD15_CARD)
        return
    (item,) = client.run(workflow.load(template.name)).check().results()
    thumbnails.save_moving(client.fetch(item, folder / item["filename"]), template.thumbnail)


def main() -> int:
    if sys.argv[1:] == ["--metadata"]:
        print("\n".join(path.name for path in metadata.describe_all()) or "nothing to change")
        return 0
    only = sys.argv[1] if sys.argv[1:2] in (["--graphs"], ["--blueprints"]) else None
    templates = chosen(sys.argv[2 if only else 1 :])
    program = chromium.find()
    if program is None:
        raise Failed("there is no Chromium; `python3 scripts/dev.py test` installs it")
    comfyui = Path(os.environ["COMFYUI_DIR"])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        base = Path(folder)
        for model in metadata.MODELS.values():  # empty: the loaders' lists must show them, nobody loads them
            path = base / "models" / model["directory"] / model["name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        with (
            Server(comfyui, Path(sys.executable), base, environment=spare_threads()) as server,
            Editor(server.url, program) as editor,
        ):
            server.check_pack()
            if only == "--blueprints":
                write_blueprints(editor)
                return 0
            for template in templates:  # graphs first: a run leaves messages over the editor
                arrange(editor, template)
            for template in () if only else templates:
                draw(Client(server.url), template, base)
                print(template.title, flush=True)
    return 0


def chosen(names: list[str]) -> list[workflow.Template]:
    """The templates with these short names or titles; all of them without any."""
    if unknown := [name for name in names if workflow.short_name(name) is None]:
        raise Failed(
            f"workflows/templates.toml does not name {', '.join(unknown)}; it names {', '.join(workflow.names())}"
        )
    return [workflow.templates()[workflow.short_name(name) or ""] for name in names or workflow.names()]


def write_blueprints(editor: Editor) -> None:
    blueprints.FOLDER.mkdir(exist_ok=True)
    for build in blueprints.BLUEPRINTS:
        blueprint = build()
        graph = blueprints.fold(editor, blueprint)
        metadata.describe(graph)
        metadata.write(blueprint.file, graph)
        print(blueprint.title, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as error:
        sys.exit(str(error))
