// The nodes of the cluster: which are alive, what they hold and run, and how full their disks are.

import * as format from "./format.js";
import { Rows, setChips, setIcon, setText } from "./rows.js";

const LIFE = {
  alive: { word: "Alive", icon: "succeeded" },
  draining: { word: "Draining", icon: "paused" },
  dead: { word: "Not seen", icon: "stalled" },
};
const NEARLY_FULL = 0.9;

export class Nodes {
  #replica;
  #rows;
  #listener;

  /** `listener.workers(names)` is told the workers a model can be staged to. */
  constructor({ list, template }, replica, listener) {
    this.#replica = replica;
    this.#listener = listener;
    this.#rows = new Rows(list, template, { key: (node) => node.name, fill });
  }

  async load() {
    const { nodes } = await this.#replica.get("/api/nodes");
    this.#rows.show(nodes);
    this.#rows.list.dataset.known = "true";
    const workers = nodes.filter((node) => node.kind === "worker" && node.alive);
    this.#listener.workers(workers.map((node) => node.name));
  }
}

// A model's or an instance's name: the API may give it alone, or in an object.
function nameOf(thing) {
  return typeof thing === "string" ? thing : (thing.name ?? thing.model ?? thing.id ?? "");
}

/** The colour of an instance's state, here and in the list of models. */
export function tone(state) {
  if (["ready", "running", "loaded"].includes(state)) return "good";
  return state === "failed" || state === "crashed" ? "bad" : "plain";
}

function fill(slots, node, element) {
  const state = !node.alive ? "dead" : node.draining ? "draining" : "alive";
  const { word, icon } = LIFE[state];
  element.dataset.node = node.name;
  element.dataset.state = state;
  setIcon(slots.icon, icon);
  setText(slots.word, word);
  setText(slots.name, node.name);
  setText(slots.kind, node.kind);
  setText(slots.address, (node.address ?? "").replace(/^http:\/\//, ""));
  const labels = Object.entries(node.labels ?? {});
  setChips(slots.labels, labels.map(([key, value]) => ({ text: `${key}=${value}` })));
  setChips(slots.holdings, holdings(node));
  fillDisk(slots, node);
}

function holdings(node) {
  const running = (node.instances ?? []).map((instance) => ({
    text: `${nameOf(instance)} ${instance.state ?? "running"}`,
    tone: tone(instance.state ?? "running"),
    title: instance.id ?? "",
  }));
  const runs = new Set((node.instances ?? []).map(nameOf));
  const held = (node.models ?? []).map(nameOf).filter((name) => !runs.has(name));
  const pinned = new Set(node.pinned ?? []);
  return [...running, ...held.map((name) => ({ text: pinned.has(name) ? `${name} (pinned)` : name }))];
}

function fillDisk(slots, { disk_free: free, disk_total: total, disk_reserved: reserved, disk_orphaned: orphaned, name }) {
  const known = total > 0;
  slots.disk.hidden = !known;
  const promised =
    (reserved ? `, ${format.bytes(reserved)} reserved` : "") + (orphaned ? `, ${format.bytes(orphaned)} orphaned` : "");
  setText(slots.space, known ? `${format.bytes(free)} free of ${format.bytes(total)}${promised}` : "");
  if (!known) return;
  const used = Math.min(1, Math.max(0, 1 - free / total));
  slots.disk.setAttribute("aria-label", `Disk in use on ${name}`);
  slots.disk.setAttribute("aria-valuenow", String(Math.round(100 * used)));
  slots.disk.dataset.tone = used > NEARLY_FULL ? "warning" : "plain";
  slots.disk.firstElementChild.style.transform = `scaleX(${used})`;
}
