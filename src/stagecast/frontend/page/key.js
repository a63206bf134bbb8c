// The bearer key, asked for only when a replica answers 401, and kept for this tab alone.

const STORED_AS = "stagecast-key";

export class AccessKey {
  #form;
  #asked = null;

  constructor(form) {
    this.#form = form;
    form.addEventListener("submit", (event) => this.#submitted(event));
  }

  get value() {
    return sessionStorage.getItem(STORED_AS) ?? "";
  }

  get headers() {
    return this.value ? { Authorization: `Bearer ${this.value}` } : {};
  }

  /** Resolves when there is a key other than `refused`, the one just answered with 401 ("" for none). */
  async ask(refused) {
    if (this.value !== refused) return;
    if (!this.#asked) {
      this.#asked = Promise.withResolvers();
      this.#form.elements.verdict.value = refused ? "That key was not accepted." : "";
      this.#form.hidden = false;
      document.body.dataset.locked = "true";
      this.#form.elements.key.focus();
    }
    await this.#asked.promise;
  }

  #submitted(event) {
    event.preventDefault();
    const field = this.#form.elements.key;
    sessionStorage.setItem(STORED_AS, field.value.trim());
    field.value = "";
    this.#form.hidden = true;
    delete document.body.dataset.locked;
    this.#asked?.resolve();
    this.#asked = null;
  }
}
