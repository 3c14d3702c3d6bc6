// A closed disclosure of content that is detail to most readers.
import { h } from "../dom.js";

export const folded = (title, ...content) =>
  h("details", { class: "folded" }, h("summary", {}, title), h("div", { class: "folded-body" }, ...content));
