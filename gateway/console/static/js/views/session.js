// Who is asking: log in with an API key, see the role, log out.
import * as api from "../api.js";
import { fill, h } from "../dom.js";
import { moment } from "../format.js";
import { load, logOut, needsLogIn, state } from "../state.js";
import { failure } from "../parts/notices.js";

const ROLES = {
  client: "may ask for predictions",
  reviewer: "may also see flagged inputs and review them",
  admin: "may also change what is served",
};

export function sessionView() {
  const body = h("div", {});
  const element = h("section", { class: "panel session" }, body);
  return { element, show: draw };

  function draw() {
    fill(body, needsLogIn() ? form() : whoAmI());
  }
}

function form() {
  const key = h("input", {
    type: "password",
    id: "key",
    name: "key",
    required: true,
    autocomplete: "current-password",
    spellcheck: "false",
    "aria-describedby": "key-hint",
  });
  const button = h("button", { type: "submit", class: "primary" }, "Log in");
  const trouble = h("div", {});
  return h(
    "form",
    { onsubmit: submit },
    h("h1", {}, "Log in"),
    h(
      "p",
      { class: "prose", id: "key-hint" },
      "This gateway asks for an API key. The browser keeps a session cookie in its place; the key itself is not stored.",
    ),
    h("label", { for: "key" }, "API key"),
    h("div", { class: "field" }, key, button),
    trouble,
  );

  async function submit(event) {
    event.preventDefault();
    button.disabled = true;
    fill(trouble);
    try {
      await api.logIn(key.value.trim());
      key.value = "";
      await load();
    } catch (error) {
      const known =
        error.status === 401 ? { status: -1, message: "This key is not known here, or it was disabled." } : error;
      fill(trouble, failure(known));
      key.focus();
    } finally {
      button.disabled = false;
    }
  }
}

function whoAmI() {
  const { key_id: id, role, disclosure, expires } = state.session;
  const facts = [
    ["Key", id ?? "none: this gateway asks for no key"],
    ["Role", `${role}: ${ROLES[role] ?? ""}`],
    disclosure && [
      "Sees",
      { full: "answers, verdicts and explanations", verdict: "answers and verdicts", label: "answers alone" }[
        disclosure
      ] ?? disclosure,
    ],
    expires && ["Session ends", moment(expires)],
  ];
  const trouble = h("div", {});
  const leave = async () => {
    try {
      await logOut();
    } catch (error) {
      fill(trouble, failure(error));
    }
  };
  return [
    h("h1", {}, "Session"),
    h(
      "dl",
      { class: "facts" },
      facts.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    ),
    id && h("button", { type: "button", onclick: leave }, "Log out"),
    trouble,
  ];
}
