/**
 * Elements, and what is said to people. Text is only ever set as text: nothing on this page parses markup, so that what
 * was spoken, or what a file is called, can never become part of the page.
 */

/** The element of the page with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** A new element. properties: of the element; those with a dash are attributes. children: elements or texts. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") {
      made.setAttribute(name, value);
    } else {
      made[name] = value;
    }
  }
  made.append(...children);
  return made;
}

/** A button that says `label`; `name` is what a screen reader says, where that is more. */
export function button(label, onClick, { name = label, className = "" } = {}) {
  const made = element("button", { type: "button", className, textContent: label, "aria-label": name, title: name });
  made.addEventListener("click", onClick);
  return made;
}

/** Say a line to those who hear the page, and show it for a while to those who see it, if they do not see it anyway. */
export function announce(text, isShown = true) {
  const line = byId("said");
  line.textContent = text;
  line.classList.toggle("shown", isShown);
  clearTimeout(announce.timer);
  announce.timer = setTimeout(() => line.classList.remove("shown"), 4000);
}

/** Put elements into a list in this order; those in their place stay untouched, so that they keep the focus. */
export function arrange(list, items) {
  items.forEach((item, place) => {
    if (list.children[place] !== item) {
      list.insertBefore(item, list.children[place] ?? null);
    }
  });
}

/** Seconds as people read them: 0:07, 12:30, 1:02:03. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor((whole % 3600) / 60);
  const rest = String(whole % 60).padStart(2, "0");
  if (hours === 0) {
    return `${minutes}:${rest}`;
  }
  return `${hours}:${String(minutes).padStart(2, "0")}:${rest}`;
}

/** Hand something to the person as a file. content: a text, or a blob */
export function download(name, content, type) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  const link = element("a", { href: address, download: name });
  link.click();
  // the browser reads the address after the click has been handled
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/**
 * Ask in a dialog that stands in the page. Resolves to the value of the button that was pressed, and to "" where the
 * dialog was left otherwise.
 */
export function ask(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}
