// A list whose elements live as long as their keys do, so that nothing blinks or loses focus.

/** Change a text only where it differs: selections and screen readers are left in peace. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setIcon(node, name) {
  const href = `#icon-${name}`;
  if (node.getAttribute("href") !== href) node.setAttribute("href", href);
}

/** Small labels in a row of them; each chip is `{text, tone?, title?}`. */
export function setChips(list, chips) {
  const before = JSON.stringify(chips);
  if (list.dataset.chips === before) return;
  list.dataset.chips = before;
  list.replaceChildren(...chips.map(chipElement));
}

function chipElement({ text, tone = "plain", title = "" }) {
  const item = document.createElement("li");
  item.textContent = text;
  item.dataset.tone = tone;
  if (title) item.title = title;
  return item;
}

export class Rows {
  #held = new Map();
  #items = new WeakMap();

  /** `list` gets clones of `template`; `fill(slots, item, element)` runs when a key's item is a new object. */
  constructor(list, template, { key, fill }) {
    Object.assign(this, { list, template, key, fill });
  }

  /** The item an element inside the list belongs to, or undefined. */
  itemOf(node) {
    let element = node;
    while (element && element.parentElement !== this.list) element = element.parentElement;
    return element ? this.#items.get(element) : undefined;
  }

  show(items) {
    const wanted = new Map(items.map((item) => [this.key(item), item]));
    for (const [key, { element }] of this.#held) {
      if (!wanted.has(key)) this.#remove(key, element);
    }
    let place = this.list.firstElementChild;
    for (const [key, item] of wanted) {
      const { element } = this.#update(key, item);
      if (element === place) place = place.nextElementSibling;
      else this.list.insertBefore(element, place);
    }
  }

  #update(key, item) {
    const row = this.#held.get(key) ?? this.#create(key);
    if (row.item !== item) {
      row.item = item;
      this.#items.set(row.element, item);
      this.fill(row.slots, item, row.element);
    }
    return row;
  }

  #create(key) {
    const element = this.template.content.firstElementChild.cloneNode(true);
    const named = [...element.querySelectorAll("[data-slot]")].map((node) => [node.dataset.slot, node]);
    const row = { element, slots: Object.fromEntries(named), item: undefined };
    this.#held.set(key, row);
    return row;
  }

  #remove(key, element) {
    const focused = element.contains(document.activeElement);
    element.remove();
    this.#held.delete(key);
    // A keyboard user whose row has gone continues from its list, not from the top of the page.
    if (focused) this.list.focus();
  }
}
