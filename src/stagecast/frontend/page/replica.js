// The HTTP API, through whichever replica the load balancer picks for a request.

import { later } from "./revision.js";

/** An answer that is not a success, in words for people. */
export class Refusal extends Error {
  constructor(status, { code, message } = {}) {
    super(message ?? `The replica answered ${status}. Try again in a moment.`);
    this.status = status;
    this.code = code ?? String(status);
  }
}

/** No answer at all. */
export class Unreachable extends Error {
  constructor(cause) {
    super("No replica answered. Try again in a moment.", { cause });
    this.code = "unreachable";
  }
}

export class Replica {
  #highest = "";

  constructor(key) {
    this.key = key;
  }

  /** Every later request asks for at least this revision, whichever replica it lands on. */
  saw(revision) {
    if (revision) this.#highest = later(this.#highest, revision);
  }

  /** A snapshot replaces everything: it may belong to another log. */
  restartAt(revision) {
    this.#highest = revision;
  }

  /** What every request carries: the key, and the highest revision seen. */
  get headers() {
    return this.#highest ? { ...this.key.headers, "Stagecast-Min-Revision": this.#highest } : this.key.headers;
  }

  get(path) {
    return this.#request(path, { method: "GET", seconds: 10 });
  }

  post(path, body) {
    const json = body === undefined ? {} : { body: JSON.stringify(body), type: "application/json" };
    return this.#request(path, { method: "POST", seconds: 30, ...json });
  }

  delete(path) {
    return this.#request(path, { method: "DELETE", seconds: 60 });
  }

  async #request(path, options) {
    for (;;) {
      const key = this.key.value;
      const response = await this.#send(path, options);
      if (response.status !== 401) return this.#read(response);
      await this.key.ask(key);
    }
  }

  async #send(path, { method, body, type, seconds }) {
    const headers = { Accept: "application/json", ...this.headers };
    if (type) headers["Content-Type"] = type;
    try {
      const signal = AbortSignal.timeout(seconds * 1000);
      return await fetch(path, { method, headers, body, cache: "no-store", signal });
    } catch (error) {
      throw new Unreachable(error);
    }
  }

  async #read(response) {
    const answer = await response.json().catch(() => null);
    if (!response.ok) throw new Refusal(response.status, answer?.error);
    this.saw(response.headers.get("Stagecast-Revision"));
    return answer;
  }
}
