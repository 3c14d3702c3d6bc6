// What people read in place of the names of scores and localiser: the manifest's titles, its sentences on them.
import { words } from "../format.js";
import { detailOf, state } from "../state.js";

export const titleOf = (manifest, name) => own(manifest?.titles, name) ?? words(name);

/** The manifest's sentence on a score or localiser; null where it has none. */
export const meaningOf = (manifest, name) => own(manifest?.meanings, name) ?? null;

/** The manifest of that version; null if it is no longer served, or if the key may not see it. */
export async function manifestOf(name, version) {
  if (state.session?.disclosure !== "full" || !version) return null;
  try {
    const model = await detailOf(name, version);
    return model.version === version ? model.manifest : null;
  } catch {
    return null;
  }
}

const own = (texts, name) => (texts && Object.hasOwn(texts, name) ? texts[name] : undefined);
