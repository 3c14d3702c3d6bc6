// What a card's figures, attacks, systems, shifts and sections are called: by the card's own titles, else by their keys.
import { capital, words } from "../format.js";
import { isGroup, nameOf } from "./cardfigures.js";

export const QUESTIONS = ["benign", "seen", "knows", "measured"];

/** Titles of `card`, whatever it holds: every lookup gives text. */
export function titlesOf(card) {
  const titles = isGroup(card.titles) ? card.titles : {};
  const found = (kind, key) => {
    const group = titles[kind];
    const title = isGroup(group) && Object.hasOwn(group, key) ? group[key] : null;
    // Here a title stands alone or opens a sentence.
    return typeof title === "string" && title ? capital(title) : null;
  };
  const sections = isGroup(titles.sections) ? titles.sections : {};
  const sectionOf = (key) => (Object.hasOwn(sections, key) && isGroup(sections[key]) ? sections[key] : {});

  return {
    figure: (key) => found("figures", key) ?? words(key),
    attack: (key) => found("attacks", key) ?? nameOf(key),
    system: (key) => found("systems", key) ?? nameOf(key),
    shift: (key) => found("shifts", key) ?? words(key),
    /** The name of a row of section `section`: a section of the name of a list of titles has rows of that list. */
    row: (section, key) =>
      found(section, key) ?? found("attacks", key) ?? (section === "shifts" ? words(key) : nameOf(key)),
    section(key) {
      const { title, text, question } = sectionOf(key);
      return {
        title: typeof title === "string" && title ? title : words(key),
        text: typeof text === "string" ? text : null,
        question: QUESTIONS.includes(question) ? question : "measured",
      };
    },
    /** Keys of sections, those with a title first, in the order of the titles. */
    ordered: (keys) => [
      ...Object.keys(sections).filter((key) => keys.includes(key)),
      ...keys.filter((key) => !Object.hasOwn(sections, key)),
    ],
  };
}
