// The page of a replica: one event stream, and what hangs on it.

import { AccessKey } from "./key.js";
import { Models, bindInstallForm } from "./models.js";
import { Nodes } from "./nodes.js";
import * as operation from "./operation.js";
import { Operations } from "./operations.js";
import { Recent } from "./recent.js";
import { Refresh } from "./refresh.js";
import { Replica } from "./replica.js";
import { shortRevision } from "./revision.js";
import { setText } from "./rows.js";
import { EventStream } from "./stream.js";

const byId = (id) => document.getElementById(id);
const elements = (name) => ({ list: byId(name), template: byId(`${name}-row`) });

const WORDS = {
  live: "Live",
  degraded: "Degraded: this replica has lost the cluster and shows what it knew",
  reconnecting: "Reconnecting",
  locked: "Waiting for a key",
};

const key = new AccessKey(byId("key"));
const replica = new Replica(key);
const operations = new Operations(elements("operations"), replica, { ended, transition, changed });
const recent = new Recent({ ...elements("recent"), more: byId("recent-more") }, replica, isListed);
const models = new Models(elements("models"), replica);
const nodes = new Nodes(elements("nodes"), replica, { workers: (names) => models.setWorkers(names) });
const refreshes = [models, nodes, recent].map((part) => new Refresh(() => part.load()));
let degraded = false;

function ended(row) {
  recent.add(row);
  setText(byId("announcer"), operation.announcement(row));
}

function transition() {
  refreshes.forEach((refresh) => refresh.request());
}

function changed(rows) {
  setText(byId("summary"), operation.summary(rows));
  document.title = title(rows);
  recent.show();
}

function isListed(row) {
  const same = (listed) => listed.id === row.id && listed.jobID === row.jobID && operation.isEnded(listed);
  return operations.rows.some(same);
}

function title(rows) {
  const whole = operation.overall(rows);
  const parts = [whole === null ? "" : `${Math.floor(whole)} %`, operation.summary(rows), "Stagecast"];
  return parts.filter(Boolean).join(" – ");
}

function showConnection(state) {
  byId("connection").dataset.state = state;
  setText(byId("connection-word"), WORDS[state]);
}

function showReplica(name) {
  if (name) setText(byId("replica"), name);
}

function showRevision(revision) {
  setText(byId("revision"), shortRevision(revision));
  byId("revision").title = `Revision ${revision}`;
}

function showHealth(facts) {
  showReplica(facts.replica);
  if (facts.degraded === undefined) return;
  degraded = facts.degraded;
  showConnection(degraded ? "degraded" : "live");
}

function received({ type, data, id }) {
  const facts = JSON.parse(data);
  if (type === "snapshot") restart(facts, id || facts.revision);
  if (type === "operation") operations.apply(facts, id);
  if (type === "operation") replica.saw(id);
  if (id) showRevision(id);
}

function restart(snapshot, revision) {
  replica.restartAt(revision);
  operations.restart(snapshot.operations, revision);
  byId("operations").dataset.known = "true";
  showHealth(snapshot);
  showRevision(revision);
}

const stream = new EventStream("/api/operations/stream", replica, {
  connected(name) {
    showReplica(name);
    showConnection(degraded ? "degraded" : "live");
  },
  disconnected: () => showConnection("reconnecting"),
  locked: () => showConnection("locked"),
  event: received,
});

bindInstallForm(byId("install"), replica);
transition();
stream.run();
