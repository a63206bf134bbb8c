// What has ended: the history as the API gives it, and before it arrives, what the stream has just said.

import * as operation from "./operation.js";
import * as format from "./format.js";
import { Rows, setIcon, setText } from "./rows.js";

const SHOWN = 20;
const SHOWN_AT_FIRST = 8; // the style sheet hides the rest

export class Recent {
  #replica;
  #rows;
  #more;
  #ended = new Map(); // run -> row
  #stillListed;

  /** `stillListed(row)` is true for a failed one that the list of operations still shows. */
  constructor({ list, template, more }, replica, stillListed) {
    this.#more = more;
    more.addEventListener("click", () => {
      list.toggleAttribute("data-all");
      this.show();
    });
    this.#replica = replica;
    this.#stillListed = stillListed;
    this.#rows = new Rows(list, template, { key: run, fill });
  }

  async load() {
    const { operations } = await this.#replica.get(`/api/operations/history?limit=${SHOWN}`);
    operations.forEach((row) => this.#keep(row));
    this.#rows.list.dataset.known = "true";
    this.show();
  }

  add(row) {
    this.#keep(row);
    this.show();
  }

  show() {
    const newestFirst = [...this.#ended.values()].sort(byEnd);
    this.#ended = new Map(newestFirst.slice(0, 2 * SHOWN).map((row) => [run(row), row]));
    const shown = newestFirst.filter((row) => !this.#stillListed(row)).slice(0, SHOWN);
    this.#rows.show(shown);
    this.#more.hidden = shown.length <= SHOWN_AT_FIRST;
    setText(this.#more, this.#rows.list.hasAttribute("data-all") ? "Show fewer" : `Show all ${shown.length}`);
  }

  // An end is final and never changes, so the same run keeps its element; but the history tells more of it.
  #keep(row) {
    const held = this.#ended.get(run(row));
    if (!held || (row.attempts && !held.attempts)) this.#ended.set(run(row), row);
  }
}

function byEnd(a, b) {
  return Date.parse(b.updatedAt) - Date.parse(a.updatedAt);
}

// A retried operation has the same id, and may have the same job: its outcomes are told apart by attempt.
function run(row) {
  return `${row.jobID ?? row.id} ${row.attempt ?? 1} ${row.state}`;
}

function fill(slots, row, element) {
  const { word, icon } = operation.stateOf(row);
  const [elapsed, mean] = [operation.seconds(row), operation.meanRate(row)];
  element.dataset.operationId = row.id;
  element.dataset.state = row.state;
  setIcon(slots.icon, icon);
  setText(slots.word, word);
  setText(slots.name, row.name);
  setText(slots.task, [operation.task(row), operation.leavings(row)].filter(Boolean).join(" · "));
  setText(slots.duration, elapsed === null ? "" : format.duration(elapsed, { fine: true }));
  setText(slots.bytes, operation.moved(row));
  setText(slots.mean, mean === null ? "" : format.rate(mean));
  slots.mean.title = ["Mean rate", mean !== null && operation.slowedBy(row)].filter(Boolean).join("; most of the time: ");
  setText(slots.time, format.clock(new Date(row.updatedAt)));
  slots.time.dateTime = row.updatedAt;
  setText(slots.error, row.state === "failed" ? (row.error ?? "") : "");
}
