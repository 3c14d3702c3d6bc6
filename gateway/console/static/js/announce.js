// Words for screen readers when something changes outside of what has the focus.
const region = document.getElementById("announcer");

export function announce(text) {
  region.textContent = "";
  requestAnimationFrame(() => {
    region.textContent = text;
  });
}
