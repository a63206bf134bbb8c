// One operation in words: pure functions from a row of the API to what is shown.

import * as format from "./format.js";

const STATES = {
  running: { word: "Running", icon: "running" },
  queued: { word: "Queued", icon: "queued" },
  paused: { word: "Paused", icon: "paused" },
  stalled: { word: "Stalled", icon: "stalled" },
  succeeded: { word: "Succeeded", icon: "succeeded" },
  failed: { word: "Failed", icon: "failed" },
  cancelled: { word: "Cancelled", icon: "cancelled" },
};

const TASKS = {
  staging: { noun: "Staging", link: "to" },
  installation: { noun: "Installation", link: "on" },
  loading: { noun: "Loading", link: "on" },
  deletion: { noun: "Deletion", link: "on" },
};

const ENDED = new Set(["succeeded", "failed", "cancelled"]);

export const isEnded = (row) => ENDED.has(row.state);
export const isActive = (row) => !isEnded(row);

export function stateOf(row) {
  return STATES[row.state] ?? { word: row.state, icon: "queued" };
}

// Reading a copy anew is a staging that trusts nothing: the same operation, but not the same to people.
function kind(row) {
  if (isVerification(row)) return { noun: "Verification", link: "on" };
  return TASKS[row.taskType] ?? { noun: row.taskType, link: "on" };
}

const isVerification = (row) => row.verification !== undefined;

/** "Staging to worker-1". */
export function task(row) {
  const { noun, link } = kind(row);
  return row.nodeName ? `${noun} ${link} ${row.nodeName}` : noun;
}

/** A count as people read it. What other programs count is no matter of ours: frames, rows, documents. */
export function count(row, number) {
  return row.taskType in TASKS ? format.bytes(number) : Math.round(number).toLocaleString("en");
}

/** "transferring", "failed while verifying", and the attempt from the second on. */
export function circumstances(row) {
  const parts = [];
  const phase = row.taskType in TASKS ? row.phase : "";
  if (phase && row.state === "failed") parts.push(`failed while ${phase}`);
  else if (phase && row.state !== "queued" && row.state !== "succeeded") parts.push(phase);
  if (row.attempt > 1) parts.push(`attempt ${row.attempt}`);
  return parts.join(" · ");
}

/** 0–100, finer than the API's whole number where bytes are known; null if nothing can be known yet. */
export function progress(row) {
  if (isUncounted(row)) return null;
  if (row.totalBytes > 0) return Math.min(100, (100 * (row.currentBytes ?? 0)) / row.totalBytes);
  if (row.progress > 0 || row.state !== "running") return row.progress ?? 0;
  return null;
}

// A backend that starts says only that it is not ready yet.
function isUncounted(row) {
  return row.phase === "loading" && row.state === "running" && !row.currentBytes;
}

export function amount(row) {
  if (!(row.totalBytes > 0) || isUncounted(row)) return "";
  return `${count(row, row.currentBytes ?? 0)} of ${count(row, row.totalBytes)}`;
}

export function speed(row) {
  return row.state === "running" && row.bytesPerSecond > 0 ? `${count(row, row.bytesPerSecond)}/s` : "";
}

export function timeLeft(row) {
  const known = row.state === "running" && Number.isFinite(row.etaSeconds);
  return known ? `${format.duration(Math.ceil(row.etaSeconds))} left` : "";
}

/** "file 2 of 5". */
export function filePlace(row) {
  return row.totalFiles > 0 && row.fileIndex > 0 ? `file ${row.fileIndex} of ${row.totalFiles}` : "";
}

/** What the rest of the row does not say: the note in a message of ours, the whole message of a foreign publisher. */
export function remark(row) {
  const message = row.message ?? "";
  if (!row.owner && row.state === "running") return message;
  if (row.limitedBy) return /, (limited by .+)$/.exec(message)?.[1] ?? "";
  const [, standing, note] = /: (\w+) \((.+)\)$/.exec(message) ?? [];
  return (standing === row.phase || standing === row.state) && note !== row.state ? note : "";
}

/** What became of the bytes of a cancelled operation: "12 MB kept"; what a verification found: "undamaged". */
export function leavings(row) {
  if (row.verification) return row.verification;
  return /: cancelled; (.+)$/.exec(row.message ?? "")?.[1] ?? "";
}

/** Where a call that asked for several operations stands: "3 nodes · 47 % · 1 succeeded, 2 running". */
export function call(nodes) {
  const total = nodes.reduce((sum, node) => sum + node.total_bytes, 0);
  const sent = nodes.reduce((sum, node) => sum + node.bytes_sent, 0);
  const parts = [format.plural(nodes.length, "node")];
  if (total > 0) parts.push(format.percent(Math.min(100, (100 * sent) / total)));
  parts.push(summary(nodes.map((node) => ({ state: node.status }))));
  return parts.join(" · ");
}

/** The API's order, but what one call asked for stays together, where its first stands. */
export function grouped(rows) {
  const sorted = [...rows].sort(byStart);
  const first = new Map();
  sorted.forEach((row, place) => first.set(groupOf(row), Math.min(place, first.get(groupOf(row)) ?? place)));
  return sorted.sort((a, b) => first.get(groupOf(a)) - first.get(groupOf(b)) || byStart(a, b));
}

export const groupOf = (row) => (row.nodes ? `call ${row.callID}` : row.id);

/** The buttons an operation has, as the API's own verbs. */
export function verbs(row) {
  if (row.state === "failed") return ["retry", "dismiss"];
  if (isEnded(row)) return [];
  return [...pausing(row), ...cancelling(row)];
}

// Only what moves bytes is worth pausing, and only an owner of ours listens.
function pausing(row) {
  if (row.state === "paused") return ["resume"];
  const isAtWork = row.state === "running" || row.state === "stalled";
  return isAtWork && row.owner && row.cancellable && movesBytes(row) ? ["pause"] : [];
}

// What has arrived may be wanted the next time; there is nothing to keep of a foreign publisher's, or before a byte came.
function cancelling(row) {
  if (!row.cancellable) return [];
  return row.owner && movesBytes(row) && row.currentBytes > 0 ? ["keep", "cancel"] : ["cancel"];
}

/** "Staging of minilm to worker-1 failed: disk full." */
export function announcement(row) {
  const { noun, link } = kind(row);
  const where = row.nodeName ? ` ${link} ${row.nodeName}` : "";
  const cause = row.state === "failed" && row.error ? `: ${row.error}` : "";
  return `${noun} of ${row.name}${where} ${stateOf(row).word.toLowerCase()}${cause}.`;
}

export function seconds(row) {
  if (row.attempts) return row.durationSeconds ?? null;
  const elapsed = (Date.parse(row.updatedAt) - Date.parse(row.startedAt)) / 1000;
  return Number.isFinite(elapsed) && elapsed >= 0 ? elapsed : null;
}

/** Bytes that moved, as far as is known yet: a verification moves only what it repairs. */
export function moved(row) {
  const bytes = isVerification(row) ? (row.bytesMoved ?? 0) : row.currentBytes;
  return bytes > 0 ? count(row, bytes) : "";
}

/** Over the whole time, for what moves bytes between machines; null elsewhere. */
export function meanRate(row) {
  if (isVerification(row)) return null; // most of what it did was to read
  if (row.attempts) return row.meanBytesPerSecond ?? null; // the server knows what lay there before
  const elapsed = seconds(row);
  return movesBytes(row) && elapsed > 0 && row.currentBytes > 0 ? row.currentBytes / elapsed : null;
}

/** On what most of the time of an ended operation went: "network 80 %". */
export function slowedBy(row) {
  const [most] = Object.entries(row.timeSpent ?? {}).sort(([, a], [, b]) => b - a);
  return most ? `${most[0]} ${format.percent(100 * most[1])}` : "";
}

function movesBytes(row) {
  return row.taskType === "staging" || row.taskType === "installation";
}

/** The API's order: start time, then id. */
export function byStart(a, b) {
  const difference = Date.parse(a.startedAt) - Date.parse(b.startedAt);
  if (difference) return difference;
  if (a.startedAt !== b.startedAt) return a.startedAt < b.startedAt ? -1 : 1;
  return a.id < b.id ? -1 : a.id > b.id ? 1 : 0;
}

/** "2 running, 1 queued", in the order of STATES. */
export function summary(rows) {
  const counts = Object.keys(STATES).map((state) => [state, rows.filter((row) => row.state === state).length]);
  return counts.filter(([, count]) => count).map(([state, count]) => `${count} ${state}`).join(", ");
}

/** By bytes over all that is active, where bytes are known; null if nowhere. */
export function overall(rows) {
  const known = rows.filter((row) => isActive(row) && row.totalBytes > 0);
  const total = known.reduce((sum, row) => sum + row.totalBytes, 0);
  return total ? (100 * known.reduce((sum, row) => sum + (row.currentBytes ?? 0), 0)) / total : null;
}
