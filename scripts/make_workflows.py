"""Writes the editor form and the picture of every bundled workflow, and its API form as the editor exports it.

    python3 scripts/dev.py workflows [NAME ...]
    python3 scripts/dev.py workflows --metadata     writes packs, versions and model addresses alone, without a browser

The API forms are the source: change a value there (or save from the editor as API), then run this; those of DreamVideo
come from devkit/dreamvideo.py. Nodes are put into columns, a node without a column is an error. Runs in the environment
of dev.py, which names ComfyUI by COMFYUI_DIR.
"""

import io
import os
import sys
import tempfile
from pathlib import Path

import av
from devkit import chromium, dreamvideo, metadata, workflow
from devkit.client import Client
from devkit.editor import Editor
from devkit.files import Failed
from devkit.server import Server, spare_threads
from PIL import Image

COLUMNS = {
    "Model": (
        "CheckpointLoaderSimple",
        "StillMotion_LoadPocket",
        "StillMotion_LoadMotionModel",
        "StillMotion_LoadRetentionBranch",
        "StillMotion_LoadArtvModel",
        "StillMotion_TemporalDecoder",
        "StillMotion_LoadPocketLora",
        "PrimitiveInt",
        "Note",
    ),
    "Motion": (
        "StillMotion_ApplyMotionModel",
        "StillMotion_ModelSamplingBetas",
        "StillMotion_SteppedCFG",
        "StillMotion_MitigatingGradient",
    ),
    "Prompt": (
        "StillMotion_PromptSchedule",
        "StillMotion_Story",
        "CLIPTextEncode",
        "EmptyLatentImage",
        "VAEEncode",
        "RepeatLatentBatch",
    ),
    "Image": ("EmptyImage", "ImageCompositeMasked"),
    "Sketch": ("SolidMask", "MaskComposite", "BatchMasksNode", "MaskToImage", "Canny"),
    "Control": (
        "StillMotion_LoadPocketControlNet",
        "ControlNetApplyAdvanced",
        "StillMotion_ControlNetFrames",
        "StillMotion_ApplyImageRetention",
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
    "Note": [350, 190],
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
ROOM = {"StillMotion_LongVideo": 230, "StillMotion_AutoregressiveVideo": 230, "StillMotion_StagedVideo": 310}
POCKET_NOTE = """The pocket model knows eight shapes
(circle, square, triangle, star, cross,
diamond, ring, heart) in eight colours
(red, green, blue, yellow, orange, purple,
cyan, pink). They move right, left, up, down
or in a circle, or stand still, slowly or
quickly, on a black, white or gray background,
at night, over a green field or at sunset."""
SD15_NOTE = """Files this graph needs:
models/checkpoints/
    v1-5-pruned-emaonly-fp16.safetensors
models/animatediff_models/
    mm_sd_v15_v2.ckpt
Any SD1.5 checkpoint and any AnimateDiff motion
module for SD1.5 will do: choose yours in the
two loaders."""
# the editor lays the nodes out as loadApiJson leaves them; this puts them into our columns, one group around each
ARRANGE = """([columns, sizes, room, note]) => {
  const graph = window.app.rootGraph, gap = 40, title = 30, pad = 20;
  const text = LiteGraph.createNode('Note');
  graph.add(text);
  text.title = 'What to choose';
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


def arrange(editor: Editor, name: str) -> Image.Image:
    """Write both forms of one workflow and take a picture of its graph."""
    prompt = dreamvideo.GRAPHS[name]() if name in dreamvideo.GRAPHS else workflow.load(name)
    editor.evaluate("([prompt, name]) => window.app.loadApiJson(prompt, name)", [prompt, name])
    editor.page.wait_for_timeout(1500)
    note = SD15_NOTE if name.endswith("_sd15") else POCKET_NOTE
    if without := editor.evaluate(ARRANGE, [COLUMNS, SIZES, ROOM, note]):
        raise Failed(f"{name}: no column for {', '.join(without)}; add it to COLUMNS in {Path(__file__).name}")
    editor.show_all()
    exported, saved = editor.prompt(), editor.serialized()
    saved["extra"].pop("ds", None)  # where this canvas happened to look
    metadata.describe(saved)
    metadata.write(
        workflow.API_FOLDER / f"{name}{workflow.API}", {key: exported[key] for key in sorted(exported, key=int)}
    )
    metadata.write(workflow.FOLDER / f"{name}.json", saved)
    return graph_picture(editor)


def graph_picture(editor: Editor) -> Image.Image:
    """The graph, without the editor's bars around it."""
    width, height = editor.size
    clip = {"x": 60, "y": 110, "width": width - 60, "height": height - 170}
    return Image.open(io.BytesIO(editor.page.screenshot(clip=clip)))  # pyright: ignore[reportArgumentType]


def result_picture(client: Client, name: str, folder: Path) -> Image.Image:
    """Four frames of what the workflow makes, first to last, in reading order."""
    (item,) = client.run(workflow.load(name)).check().results()
    with av.open(str(client.fetch(item, folder / item["filename"]))) as video:
        frames = [frame.to_image() for frame in video.decode(video=0)]
    sheet = Image.new("RGB", (512, 512))
    for i in range(4):
        frame = frames[i * (len(frames) - 1) // 3].resize((256, 256), Image.Resampling.LANCZOS)
        sheet.paste(frame, (i % 2 * 256, i // 2 * 256))
    return sheet


def main() -> int:
    if sys.argv[1:] == ["--metadata"]:
        print("\n".join(path.name for path in metadata.describe_all()) or "nothing to change")
        return 0
    names = sys.argv[1:] or sorted({*workflow.names(), *(dreamvideo.GRAPHS if dreamvideo.bundled() else ())})
    program = chromium.find()
    if program is None:
        raise Failed("there is no Chromium; `python3 scripts/dev.py test` installs it")
    comfyui = Path(os.environ["COMFYUI_DIR"])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        base = Path(folder)
        for model in metadata.MODELS.values():  # empty: the loaders' lists must show them, nobody loads them
            path = base / "models" / model["directory"] / model["name"]
            path.parent.mkdir(parents=True)
            path.touch()
        with (
            Server(comfyui, Path(sys.executable), base, environment=spare_threads()) as server,
            Editor(server.url, program) as editor,
        ):
            server.check_pack()
            write_all(names, editor, Client(server.url), base)
    return 0


def write_all(names: list[str], editor: Editor, client: Client, folder: Path) -> None:
    """Graphs first: a run leaves messages over the editor."""
    graphs = {name: arrange(editor, name) for name in names}
    for name, graph in graphs.items():
        picture = graph if name.endswith("_sd15") else result_picture(client, name, folder)
        picture.convert("RGB").save(workflow.FOLDER / f"{name}.jpg", quality=88)
        print(name, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as error:
        sys.exit(str(error))
