// The card's page in plain words, as the card has it: what the system does not hold against, what it does, the price.
import { h } from "../dom.js";
import { isGroup } from "./cardfigures.js";

/** The page of `card`; null for a card without one. */
export function plain(card) {
  const parts = (Array.isArray(card.plain) ? card.plain : []).filter(
    (part) => isGroup(part) && typeof part.title === "string" && Array.isArray(part.sentences),
  );
  if (!parts.length) return null;
  return h(
    "section",
    { class: "in-plain-words", "aria-labelledby": "plain-title" },
    h("h2", { id: "plain-title" }, "In plain words"),
    parts.map(({ title, sentences }) => [
      h("h3", {}, title),
      h(
        "ul",
        {},
        sentences.filter((text) => typeof text === "string").map((text) => h("li", {}, marked(text))),
      ),
    ]),
  );
}

/** Text whose parts between backticks are code. */
const marked = (text) => text.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part));
