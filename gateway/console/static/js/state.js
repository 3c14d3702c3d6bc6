// State of all views: the caller, the selected model, and what is known about models.
import * as api from "./api.js";

const listeners = new Set();
const details = new Map();

export const state = {
  /** Answer of GET /v1/session; null while nobody is logged in and the gateway asks for a key. */
  session: null,
  models: [],
  model: null,
};

/** Call `listener` after every change of `state`. */
export function subscribe(listener) {
  listeners.add(listener);
}

export function change(values) {
  Object.assign(state, values);
  for (const listener of listeners) listener(state);
}

/**
 * Manifest, card and bands of a model. The answer is of the version that is active now; it is kept for `version`, the
 * one that the caller has in mind, so that another version asks anew.
 */
export function detailOf(name, version) {
  const key = `${name} ${version}`;
  if (!details.has(key)) {
    const asked = api.model(name);
    asked.catch(() => details.delete(key));
    details.set(key, asked);
  }
  return details.get(key);
}

/** Fetch the caller and the served models; throws every error of the gateway but 401. */
export async function load() {
  let session;
  try {
    session = await api.session();
  } catch (error) {
    if (error.status !== 401) throw error;
    signOut();
    return;
  }
  const { models } = await api.models();
  const kept = models.find((model) => model.name === state.model?.name);
  change({ session, models, model: kept ?? models.find((model) => model.default) ?? models[0] });
}

export async function logOut() {
  await api.logOut();
  signOut();
}

/** Drop what was fetched under a session that has ended. */
export function signOut() {
  details.clear();
  change({ session: null, models: [], model: null });
}

/** Without a log-in every view but that one would only show refusals. */
export const needsLogIn = () => state.session === null;

const RANKS = { client: 0, reviewer: 1, admin: 2 };
export const may = (role) => RANKS[state.session?.role] >= RANKS[role];
