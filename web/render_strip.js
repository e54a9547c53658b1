// While Long Video, Autoregressive Video or Staged Video runs, shows the frames made so far on the node, in both
// renderers. When the node is done the strip goes, and the editor itself plays the video there.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const NODES = new Set(["StillMotion_LongVideo", "StillMotion_AutoregressiveVideo", "StillMotion_StagedVideo"]);
const WIDGET = "render_strip";
// A type of our own: with Nodes 2.0 the frontend mounts our element only for a type that it does not know.
const TYPE = "STILLMOTION_STRIP";
const HEIGHT = 130; // pixels

let running = null; // execution id of the node that runs: "7", or "5:7" for node 7 in the subgraph node 5

function nodeOf(executionId) {
  let graph = app.rootGraph, node = null;
  for (const id of String(executionId).split(":")) {
    node = graph?.getNodeById(Number(id));
    graph = node?.subgraph;
  }
  return NODES.has(node?.comfyClass) ? node : null;
}

function stripOf(node) {
  return node.widgets?.find((widget) => widget.name === WIDGET);
}

function addStrip(node) {
  const picture = document.createElement("img");
  picture.style.cssText = "width: 100%; height: 100%; object-fit: contain; object-position: top left;";
  const size = { getMinHeight: () => HEIGHT, getMaxHeight: () => HEIGHT, hideOnZoom: false };
  const widget = node.addDOMWidget(WIDGET, TYPE, picture, size);
  // The strip belongs to a run: neither the saved workflow nor the prompt holds it.
  widget.serialize = false;
  widget.options.serialize = false;
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  return widget;
}

function show(node, blob) {
  const picture = (stripOf(node) ?? addStrip(node)).element;
  URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(blob);
  node.setDirtyCanvas(true, true);
}

function remove(node) {
  const widget = stripOf(node);
  if (!widget) return;
  URL.revokeObjectURL(widget.element.src);
  node.removeWidget(widget);
  node.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "StillMotion.RenderStrip",
  setup() {
    api.addEventListener("executing", ({ detail }) => (running = detail));
    api.addEventListener("b_preview", ({ detail }) => {
      const node = running === null ? null : nodeOf(running);
      if (node) show(node, detail);
    });
  },
  nodeCreated(node) {
    if (!NODES.has(node.comfyClass)) return;
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.call(this, output);
      remove(this);
    };
  },
});
