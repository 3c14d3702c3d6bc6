// Text to copy: commands and raw answers.
import { announce } from "../announce.js";
import { h, icon } from "../dom.js";

/** A closed disclosure with `text()` in it, made when it is opened first. */
export function disclosure(title, text, open = false) {
  const code = h("pre", { tabindex: "0", "aria-label": title });
  const button = h(
    "button",
    { type: "button", class: "quiet copy", onclick: () => copy(code.textContent, button) },
    icon("copy"),
    h("span", {}, "Copy"),
  );
  const write = () => (code.textContent ||= text());
  if (open) write();
  return h(
    "details",
    { class: "disclosure", open, ontoggle: write },
    h("summary", {}, title),
    h("div", { class: "code" }, code, button),
  );
}

async function copy(text, button) {
  const label = button.lastElementChild;
  try {
    await navigator.clipboard.writeText(text);
    label.textContent = "Copied";
  } catch {
    label.textContent = "Select and copy by hand";
  }
  announce(label.textContent);
  setTimeout(() => (label.textContent = "Copy"), 2000);
}

/** A word of a POSIX shell command. */
export const quoted = (word) =>
  `'${String(word)
    .replace(/[\u0000-\u001f\u007f]/g, "")
    .replaceAll("'", "'\\''")}'`;
