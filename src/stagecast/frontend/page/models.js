// The models: who holds them, where they run, and the ways to ask for more: stage, load, install.

import * as format from "./format.js";
import { tone } from "./nodes.js";
import { Rows, setChips, setText } from "./rows.js";

const ACCEPTED = "Accepted. It shows among the operations.";
const READ_WITHIN = 6000;
const DELETE = "Delete";
const SURE = "Delete everywhere?";

export class Models {
  #replica;
  #rows;
  #list;
  #workers = [];

  constructor({ list, template }, replica) {
    this.#replica = replica;
    this.#list = list;
    const filled = (slots, model, element) => {
      fill(slots, model, element);
      setTargets(slots.target, this.#workers);
    };
    this.#rows = new Rows(list, template, { key: (model) => model.name, fill: filled });
    list.addEventListener("submit", (event) => this.#submitted(event));
    list.addEventListener("focusout", (event) => event.target.value === "delete" && setText(event.target, DELETE));
  }

  async load() {
    const { models } = await this.#replica.get("/api/models");
    this.#rows.show(models);
    this.#list.dataset.known = "true";
  }

  setWorkers(names) {
    this.#workers = names;
    for (const select of this.#list.querySelectorAll("select")) setTargets(select, names);
  }

  #submitted(event) {
    event.preventDefault();
    const { name } = this.#rows.itemOf(event.target);
    const target = event.target.elements.target.value;
    const verb = event.submitter?.value ?? "stage";
    if (verb === "delete") return this.#remove(event.target, event.submitter, name);
    const wish = verb === "load" ? { node: target || null } : { nodes: target ? [target] : "all" };
    const path = `/api/models/${encodeURIComponent(name)}/${verb}`;
    send(event.target, () => this.#replica.post(path, wish), ACCEPTED);
  }

  // Nothing brings the files back: the first press only asks.
  #remove(form, button, name) {
    if (button.textContent !== SURE) return setText(button, SURE);
    setText(button, DELETE);
    return send(form, () => this.#replica.delete(`/api/models/${encodeURIComponent(name)}`), "Deleted.");
  }
}

/** The form that installs from a gallery or from a URL. */
export function bindInstallForm(form, replica) {
  const choose = () => {
    for (const part of form.querySelectorAll("[data-source]")) {
      part.disabled = part.hidden = part.dataset.source !== form.elements.source.value;
    }
  };
  form.addEventListener("change", choose);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { source: _, ...wish } = Object.fromEntries(new FormData(form));
    await send(form, () => replica.post("/api/models/install", wish), ACCEPTED);
  });
  choose();
}

/** Asks, and says in the form's own `verdict` what came of it. */
async function send(form, ask, done) {
  if (form.querySelector("button").getAttribute("aria-disabled") === "true") return;
  setBusy(form, true);
  say(form, "working", "Asking…");
  try {
    await ask();
    say(form, "good", done);
    setTimeout(() => form.elements.verdict.value === done && say(form, "good", ""), READ_WITHIN);
  } catch (error) {
    say(form, "bad", error.message);
  } finally {
    setBusy(form, false);
  }
}

function say(form, verdictTone, text) {
  form.elements.verdict.dataset.tone = verdictTone;
  form.elements.verdict.value = text;
}

/** For a request under way: focus stays where it is, which `disabled` would not allow. */
function setBusy(form, busy) {
  for (const button of form.querySelectorAll("button")) button.setAttribute("aria-disabled", String(busy));
}

// A person may have chosen already: the choice stays as long as that worker does.
function setTargets(select, names) {
  if (select.dataset.names === JSON.stringify(names)) return;
  select.dataset.names = JSON.stringify(names);
  const chosen = select.value;
  select.replaceChildren(new Option("all workers", ""), ...names.map((name) => new Option(name, name)));
  select.value = names.includes(chosen) ? chosen : "";
}

function fill(slots, model, element) {
  element.dataset.model = model.name;
  setText(slots.name, model.name);
  setText(slots.size, `${format.bytes(model.bytes)} in ${format.plural(fileCount(model.files), "file")}`);
  setText(slots.digest, model.digest ? shortDigest(model.digest) : "");
  slots.digest.title = model.digest ?? "";
  slots.target.setAttribute("aria-label", `Workers for ${model.name}`);
  slots.remove.setAttribute("aria-description", model.name);
  setChips(slots.instances, (model.instances ?? []).map(instanceChip));
  setChips(slots.holders, (model.holders ?? []).map(holderChip));
}

function fileCount(files) {
  return Array.isArray(files) ? files.length : files;
}

// "blake3:0123…" and "0123…" both begin to differ within eight characters of the digest itself.
function shortDigest(digest) {
  return digest.slice(digest.indexOf(":") + 1).slice(0, 8);
}

function instanceChip({ node, state, id }) {
  return { text: `${state} on ${node}`, tone: tone(state), title: id ?? "" };
}

function holderChip({ node, kind, complete }) {
  return { text: complete ? node : `${node}, in part`, tone: complete ? "plain" : "faint", title: kind ?? "" };
}
