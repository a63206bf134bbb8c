// The operations that run or have failed: the page's own fold of the event stream.

import * as operation from "./operation.js";
import * as format from "./format.js";
import { isOlder } from "./revision.js";
import { Rows, setIcon, setText } from "./rows.js";

const LABELS = { keep: "Cancel, keep bytes", cancel: "Cancel", pause: "Pause", resume: "Resume", retry: "Retry", dismiss: "Dismiss" };
const UNDER_WAY = {
  keep: "Cancelling…",
  cancel: "Cancelling…",
  pause: "Pausing…",
  resume: "Resuming…",
  retry: "Retrying…",
  dismiss: "Dismissing…",
};
// The stream shows what an accepted verb did; if it shows nothing for so long, the person may try again.
const ACCEPTED_FOR = 5000;

export class Operations {
  #entries = new Map(); // id -> {row, pending, refusal}, a new object for each change
  #revision = "";
  #replica;
  #rows;
  #listener;

  /** `listener` has `ended(row)`, `transition()` and `changed(rows)`; `elements` are `{list, template}`. */
  constructor({ list, template }, replica, listener) {
    this.#replica = replica;
    this.#listener = listener;
    this.#rows = new Rows(list, template, { key: ({ row }) => row.id, fill });
    list.addEventListener("click", (event) => this.#clicked(event));
  }

  get rows() {
    return [...this.#entries.values()].map(({ row }) => row).sort(operation.byStart);
  }

  /** A snapshot replaces everything. */
  restart(rows, revision) {
    const before = this.#entries;
    this.#revision = revision;
    this.#entries = new Map();
    for (const row of rows) {
      if (isShown(row)) this.#entries.set(row.id, successor(before.get(row.id), row));
    }
    this.#show();
    this.#listener.transition();
  }

  apply(row, revision) {
    if (isOlder(revision, this.#revision)) return;
    this.#revision = revision || this.#revision;
    const held = this.#entries.get(row.id);
    if (isShown(row)) this.#entries.set(row.id, successor(held, row));
    else this.#entries.delete(row.id);
    this.#show();
    // A foreign one that failed is in no list any more, but its end is news.
    const isNews = !row.dismissed || (row.attempt === 0 && held !== undefined);
    if (operation.isEnded(row) && isNews && held?.row.state !== row.state) this.#listener.ended(row);
    if (!isSameStep(held?.row, row)) this.#listener.transition();
  }

  #show() {
    const rows = operation.grouped([...this.#entries.values()].map(({ row }) => row));
    this.#rows.show(rows.map((row, place) => this.#headed(row, rows[place - 1])));
    this.#listener.changed(rows);
  }

  // The first row of a call that asked for several says how all of it stands.
  #headed(row, above) {
    const entry = this.#entries.get(row.id);
    const isFirst = row.nodes && (!above || operation.groupOf(above) !== operation.groupOf(row));
    const heading = isFirst ? `${row.name}: ${operation.call(row.nodes)}` : "";
    if ((entry.heading ?? "") === heading) return entry;
    const headed = { ...entry, heading };
    this.#entries.set(row.id, headed);
    return headed;
  }

  #clicked(event) {
    const button = event.target.closest("button[data-verb]");
    if (!button || button.getAttribute("aria-disabled") === "true") return;
    this.#act(this.#rows.itemOf(button).row.id, button.dataset.verb);
  }

  async #act(id, verb) {
    this.#note(id, { pending: verb, refusal: "" });
    try {
      const isKept = verb === "keep";
      const path = `/api/operations/${encodeURIComponent(id)}/${isKept ? "cancel" : verb}`;
      await this.#replica.post(path, isKept ? { keep_partial: true } : undefined);
      setTimeout(() => this.#note(id, { pending: "" }), ACCEPTED_FOR);
    } catch (error) {
      this.#note(id, { pending: "", refusal: `Could not ${verb === "keep" ? "cancel" : verb}: ${error.message}` });
    }
  }

  #note(id, change) {
    const entry = this.#entries.get(id);
    if (!entry) return;
    this.#entries.set(id, { ...entry, ...change });
    this.#show();
  }
}

// Failed ones stay until somebody has seen them.
function isShown(row) {
  return !row.dismissed && (operation.isActive(row) || row.state === "failed");
}

function isSameStep(held, row) {
  return held !== undefined && held.state === row.state && held.phase === row.phase && held.jobID === row.jobID;
}

function successor(held, row) {
  const before = held?.row;
  const same = before?.state === row.state && before?.jobID === row.jobID && before?.attempt === row.attempt;
  return same ? { ...held, row } : { row, pending: "", refusal: "" };
}

function fill(slots, { row, pending, refusal, heading }, element) {
  const { word, icon } = operation.stateOf(row);
  element.dataset.operationId = row.id;
  element.dataset.state = row.state;
  element.classList.toggle("part", row.nodes !== undefined);
  setText(slots.heading, heading ?? "");
  setIcon(slots.icon, icon);
  setText(slots.word, word);
  setText(slots.name, row.name);
  setText(slots.task, operation.task(row));
  setText(slots.circumstances, operation.circumstances(row));
  setText(slots.message, operation.remark(row));
  setText(slots.error, row.state === "failed" ? row.error || "No cause was given." : "");
  setText(slots.refusal, refusal);
  fillProgress(slots, row, element);
  fillButtons(slots.buttons, operation.verbs(row), pending, row.name);
}

function fillProgress(slots, row, element) {
  const value = operation.progress(row);
  setText(slots.percent, value === null ? "" : format.percent(value));
  setText(slots.amount, operation.amount(row));
  setText(slots.speed, operation.speed(row));
  setText(slots.left, operation.timeLeft(row));
  setText(slots.place, operation.filePlace(row));
  setText(slots.file, row.fileName ?? "");
  slots.file.title = row.fileName ?? "";
  fillBar(slots.bar, value, `${operation.task(row)}: ${row.name}`);
  element.dataset.progress = value === null ? "" : String(Math.floor(value * 10) / 10);
}

function fillBar(bar, value, label) {
  bar.setAttribute("aria-label", label);
  bar.classList.toggle("unknown", value === null);
  bar.firstElementChild.style.transform = value === null ? "" : `scaleX(${value / 100})`;
  if (value === null) bar.removeAttribute("aria-valuenow");
  else bar.setAttribute("aria-valuenow", String(Math.floor(value)));
}

function fillButtons(container, verbs, pending, name) {
  if (container.dataset.verbs !== verbs.join()) {
    container.dataset.verbs = verbs.join();
    container.replaceChildren(...verbs.map((verb) => verbButton(verb, name)));
  }
  for (const button of container.children) {
    setText(button, pending === button.dataset.verb ? UNDER_WAY[pending] : LABELS[button.dataset.verb]);
    button.setAttribute("aria-disabled", String(pending !== ""));
  }
}

function verbButton(verb, name) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.verb = verb;
  button.setAttribute("aria-description", name);
  return button;
}
