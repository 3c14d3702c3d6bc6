// The theme: light, dark, or the system's.
import { fill, h, icon } from "./dom.js";

const KEY = "palisade-theme";
const ORDER = ["auto", "light", "dark"];

/** A button that switches to the next theme. */
export function themeButton() {
  const button = h("button", { type: "button", class: "quiet", onclick: next });
  function next() {
    set(ORDER[(ORDER.indexOf(current()) + 1) % ORDER.length]);
    draw();
  }
  function draw() {
    const name = current();
    button.setAttribute("aria-label", `Theme: ${name}. Change theme`);
    button.title = `Theme: ${name}`;
    fill(button, icon("theme"), h("span", { class: "wide-only" }, name));
  }
  draw();
  return button;
}

const current = () => document.documentElement.dataset.theme ?? "auto";

function set(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    if (theme === "auto") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, theme);
  } catch {
    // Storage is off: the choice holds until the page is closed.
  }
}
