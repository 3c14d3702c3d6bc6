// Starts the console: header, routes (`#/view?parameters`), log-in where it is needed.
import { fill, h, icon } from "./dom.js";
import { change, load, may, needsLogIn, signOut, state, subscribe } from "./state.js";
import { themeButton } from "./theme.js";
import { failure, loading } from "./parts/notices.js";
import { campaignsView } from "./views/campaigns.js";
import { eventsView } from "./views/events.js";
import { inspectView } from "./views/inspect.js";
import { modelView } from "./views/model.js";
import { sessionView } from "./views/session.js";

const VIEWS = {
  inspect: { title: "Inspect", make: inspectView },
  events: { title: "Flagged inputs", make: eventsView },
  campaigns: { title: "Campaigns", make: campaignsView },
  model: { title: "Model", make: modelView },
  session: { title: "Session", make: sessionView },
};
const main = document.getElementById("main");
const made = new Map();
const STARTING_MS = 1000;
let shown = null;

function route() {
  const [path, parameters = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { name: Object.hasOwn(VIEWS, path) ? path : "inspect", parameters: new URLSearchParams(parameters) };
}

function show() {
  const wanted = route();
  const name = needsLogIn() ? "session" : wanted.name;
  // The next key must not see what this one saw.
  if (needsLogIn()) made.clear();
  if (!made.has(name)) made.set(name, VIEWS[name].make());
  const view = made.get(name);
  if (shown !== view) {
    shown?.hide?.();
    fill(main, view.element);
    if (shown) main.focus({ preventScroll: true });
    shown = view;
    window.scrollTo(0, 0);
  }
  document.title = `${VIEWS[name].title} · Palisade`;
  view.show(wanted.parameters);
  drawHeader();
}

function drawHeader() {
  const current = needsLogIn() ? "session" : route().name;
  const links = needsLogIn() ? [] : ["inspect", may("reviewer") && "events", may("reviewer") && "campaigns", "model"].filter(Boolean);
  fill(
    document.getElementById("nav"),
    links.map((name) =>
      h("a", { href: `#/${name}`, "aria-current": name === current ? "page" : null }, VIEWS[name].title),
    ),
  );
  const tools = document.getElementById("tools");
  const choosing = tools.contains(document.activeElement) && document.activeElement.localName === "select";
  fill(tools, modelChoice(), themeButton(), sessionLink(current));
  if (choosing) tools.querySelector("select")?.focus();
}

function modelChoice() {
  if (!state.model) return null;
  const { name, version, provider, precision = "" } = state.model;
  const facts = h("span", { class: "serving wide-only" }, h("b", {}, name), version && ` ${version} · ${provider} ${precision}`);
  if (state.models.length < 2) return facts;
  const options = state.models.map((m) =>
    h("option", { value: m.name, selected: m.name === name }, `${m.name} ${m.version ?? ""}`),
  );
  const choose = (event) => change({ model: state.models.find((m) => m.name === event.target.value) });
  return h(
    "label",
    { class: "model-choice" },
    h("span", { class: "visually-hidden" }, "Model"),
    h("select", { onchange: choose }, options),
  );
}

function sessionLink(current) {
  const who = needsLogIn() ? "log in" : (state.session.key_id ?? `no key, ${state.session.role}`);
  const attributes = {
    class: "button quiet",
    href: "#/session",
    "aria-label": `Session: ${who}`,
    title: `Session: ${who}`,
  };
  return h(
    "a",
    { ...attributes, "aria-current": current === "session" ? "page" : null },
    icon("person"),
    h("span", { class: "wide-only" }, who),
  );
}

async function start() {
  fill(document.getElementById("tools"), themeButton());
  fill(main, loading("Asking the gateway"));
  try {
    await load();
  } catch (error) {
    if (error.code === "not_ready") {
      fill(main, loading("The gateway loads its models"));
      setTimeout(start, STARTING_MS);
    } else fill(main, failure(error, start));
    return;
  }
  subscribe(() => show());
  window.addEventListener("hashchange", show);
  show();
}

// A session can end while the page is open: every view that is refused for that reason reports it here.
window.addEventListener("palisade:signed-out", signOut);

// The fragment of the address names the view, so that the skip link must not change it.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

start();
