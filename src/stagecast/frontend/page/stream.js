// Server-sent events over fetch: EventSource gives up on a 502, the answer of a balancer whose replica died.

const CONNECT_WITHIN = 5000;
const SILENT_AT_MOST = 12_000; // the server sends a comment every 5 s
const FIRST_DELAY = 200;
const LONGEST_DELAY = 2000;

/** Turns text, cut anywhere, into events `{type, data, id}`. */
export class EventParser {
  #rest = "";
  #fresh = () => ({ type: "message", data: [], id: undefined });
  #event = this.#fresh();

  feed(text) {
    // A "\r" at the very end may be half of a "\r\n": it waits for the next text.
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    return lines.map((line) => this.#line(line)).filter((event) => event !== null);
  }

  #line(line) {
    if (line === "") return this.#dispatch();
    const [, field, value] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
    if (field === "event") this.#event.type = value ?? "";
    if (field === "data") this.#event.data.push(value ?? "");
    if (field === "id") this.#event.id = value ?? "";
    return null;
  }

  #dispatch() {
    const event = this.#event;
    this.#event = this.#fresh();
    return event.data.length ? { ...event, data: event.data.join("\n") } : null;
  }
}

/** How long to wait after so many failures in a row, in ms; `chance` is in [0, 1). */
export function backOff(failures, chance) {
  return Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** failures) * (0.5 + chance / 2);
}

export class EventStream {
  #path;
  #replica;
  #listener;
  #lastEventId = "";
  #failures = 0;

  /** `listener` has `connected(replicaName)`, `disconnected()`, `locked()` and `event({type, data, id})`. */
  constructor(path, replica, listener) {
    this.#path = path;
    this.#replica = replica;
    this.#listener = listener;
  }

  /** Follows for as long as the page lives. */
  async run() {
    for (;;) {
      try {
        await this.#follow();
      } catch (error) {
        console.info("The event stream broke.", error);
      }
      this.#listener.disconnected();
      await new Promise((resolve) => setTimeout(resolve, backOff(this.#failures++, Math.random())));
    }
  }

  async #follow() {
    const connection = new AbortController();
    const watchdog = new Watchdog(() => connection.abort(new Error("no data for too long")));
    try {
      watchdog.expect(CONNECT_WITHIN);
      const response = await this.#open(connection.signal, watchdog);
      this.#listener.connected(response.headers.get("Stagecast-Replica") ?? "");
      await this.#read(response.body.getReader(), watchdog);
    } finally {
      watchdog.expect(null);
      connection.abort();
    }
  }

  async #open(signal, watchdog) {
    for (;;) {
      const key = this.#replica.key.value;
      const headers = { Accept: "text/event-stream", ...this.#replica.headers };
      if (this.#lastEventId) headers["Last-Event-ID"] = this.#lastEventId;
      const response = await fetch(this.#path, { headers, cache: "no-store", signal });
      if (response.ok) return response;
      if (response.status !== 401) throw new Error(`the stream answered ${response.status}`);
      watchdog.expect(null);
      this.#listener.locked();
      await this.#replica.key.ask(key);
      watchdog.expect(CONNECT_WITHIN);
    }
  }

  async #read(reader, watchdog) {
    const decoder = new TextDecoder();
    const parser = new EventParser();
    for (;;) {
      watchdog.expect(SILENT_AT_MOST);
      const { value, done } = await reader.read();
      if (done) return;
      this.#failures = 0;
      for (const event of parser.feed(decoder.decode(value, { stream: true }))) {
        this.#apply(event);
      }
    }
  }

  #apply(event) {
    try {
      this.#listener.event(event);
    } catch (error) {
      // What could not be applied is not skipped: the next connection begins with a whole snapshot.
      this.#lastEventId = "";
      throw error;
    }
    if (event.id) this.#lastEventId = event.id;
  }
}

class Watchdog {
  #timer;
  #bark;

  constructor(bark) {
    this.#bark = bark;
  }

  /** Barks unless told otherwise within so many ms; null calms it. */
  expect(milliseconds) {
    clearTimeout(this.#timer);
    if (milliseconds !== null) this.#timer = setTimeout(this.#bark, milliseconds);
  }
}
