// Shows the table of the Guidance Readout node on the node itself, in both renderers. The frontend shows the text of a
// node's ui on its own "Preview as Text" and "Save Text" nodes only.
import { app } from "../../scripts/app.js";

const NODE = "StillMotion_GuidanceReadout";
const WIDGET = "readout_table";
// A type of our own: with Nodes 2.0 the frontend draws its own component for every type that it knows ("customtext" is a
// text area) and mounts our element only for a type that it does not know.
const TYPE = "STILLMOTION_TABLE";
const SMALLEST_HEIGHT = 240;

function addTable(node) {
  const table = document.createElement("pre");
  table.style.cssText =
    "margin: 0; padding: 6px; overflow: auto; font: 11px monospace; user-select: text;" +
    "color: var(--input-text); background: var(--comfy-input-bg);";
  const widget = node.addDOMWidget(WIDGET, TYPE, table, {
    getValue: () => table.textContent,
    setValue: (text) => (table.textContent = text ?? ""),
    getMinHeight: () => 120,
  });
  // The table belongs to a run: neither the saved workflow nor the prompt holds it.
  widget.serialize = false;
  widget.options.serialize = false;
  // The width is left as it is: a wider node would cover its neighbour. The table scrolls.
  node.setSize([node.size[0], Math.max(node.size[1], SMALLEST_HEIGHT)]);
  return widget;
}

function show(node, output) {
  const text = output?.text;
  if (node?.comfyClass !== NODE || !text) return;
  const widget = node.widgets?.find((w) => w.name === WIDGET) ?? addTable(node);
  widget.value = Array.isArray(text) ? text.join("\n") : text;
  node.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "StillMotion.GuidanceReadout",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.call(this, output);
      show(this, output);
    };
  },
  // Outputs that the editor restores, from its history or from another tab of workflows.
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) show(app.rootGraph?.getNodeById(id), output);
  },
});
