// Announcements for screen readers of changes outside the focused element.
const region = document.getElementById("announcer");

export function announce(text) {
  region.textContent = "";
  requestAnimationFrame(() => {
    region.textContent = text;
  });
}
