// Reads asked for often and done seldom: one at a time, at most once a second, and every ten seconds anyway.

const AT_MOST_EVERY = 1000;
const AT_LEAST_EVERY = 10_000;

export class Refresh {
  #load;
  #running = false;
  #wanted = false;
  #timer;
  #last = -Infinity;

  /** `load()` is async; when it fails, what is shown stays, and it is tried again in a second. */
  constructor(load) {
    this.#load = load;
  }

  request() {
    this.#wanted = true;
    if (!this.#running) this.#schedule(this.#last + AT_MOST_EVERY - performance.now());
  }

  #schedule(delay) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#run(), Math.max(0, delay));
  }

  async #run() {
    this.#running = true;
    this.#wanted = false;
    this.#last = performance.now();
    try {
      await this.#load();
    } catch (error) {
      this.#wanted = true;
      console.warn("A refresh failed; what was shown stays.", error);
    } finally {
      this.#running = false;
      this.#schedule(this.#wanted ? AT_MOST_EVERY : AT_LEAST_EVERY);
    }
  }
}
