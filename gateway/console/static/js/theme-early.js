// Before the first paint, so that a chosen theme does not flash; not a module, as modules wait.
try {
  const theme = localStorage.getItem("palisade-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is off: the system's theme holds.
}
