// The class and the caption that images are drawn with, where the model takes them.

import { readNumber } from "./messages.js";

const element = (id) => document.getElementById(id);

export class Conditions {
  /** `changed` is called after each change. */
  constructor(facts, changed) {
    this.facts = facts;
    const [range, number, each] = ["class-range", "class-number", "class-each"].map(element);
    element("conditions").hidden = !facts.classes && !facts.captions;
    element("class-field").hidden = !facts.classes;
    element("caption-field").hidden = !facts.captions;
    range.max = number.max = Math.max(facts.classes - 1, 0);
    each.checked = facts.classes > 1;
    range.disabled = number.disabled = each.checked;
    range.oninput = () => {
      number.value = range.value;
      changed();
    };
    number.oninput = () => {
      range.value = number.value;
      changed();
    };
    each.onchange = () => {
      range.disabled = number.disabled = each.checked;
      changed();
    };
    element("caption").oninput = changed;
  }

  /** The class of the image at a place of the gallery; undefined for a model without classes. */
  classAt(index) {
    if (!this.facts.classes) return undefined;
    return element("class-each").checked ? index % this.facts.classes : this.chosenClass;
  }

  /** The class that the slider shows; undefined for a model without classes. */
  get chosenClass() {
    if (!this.facts.classes) return undefined;
    return readNumber(element("class-number"), "class", this.facts.classes - 1);
  }

  /** What a request says besides seeds. */
  request(classes) {
    return {
      ...(this.facts.classes && { classes }),
      ...(this.facts.captions && { caption: element("caption").value }),
    };
  }

  /** Whether something that the model needs is missing. */
  get isIncomplete() {
    return Boolean(this.facts.captions) && element("caption").value.trim() === "";
  }
}

/** Name of an image for people. */
export function titleOf({ seed, class_ }) {
  return class_ === undefined ? `Seed ${seed}` : `Seed ${seed}, class ${class_}`;
}
