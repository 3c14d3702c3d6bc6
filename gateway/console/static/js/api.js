// The gateway's routes. Every failure is an `ApiError` with a status and a text that can be shown.

export class ApiError extends Error {
  constructor(status, code, message, { retryAfter = null, requestId = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
    this.requestId = requestId;
  }
}

// Addresses are relative to the page, so that the console also works behind a path prefix.
export const address = (path) => new URL(path, document.baseURI).href;

let csrf = null;
let who = null;
const SAFE = new Set(["GET", "HEAD"]);

/** The JSON of an answer, null of an empty one. */
export async function request(path, options) {
  const response = await ask(path, options);
  return response.status === 204 ? null : response.json();
}

async function ask(path, options = {}) {
  const [token, caller] = [csrf, who];
  try {
    return await send(path, options);
  } catch (error) {
    // The cookie may be of a later log-in, in another tab: its token is another one.
    if (error.status !== 403 || SAFE.has(options.method ?? "GET") || !token) throw error;
    await session();
    if (csrf === token || who !== caller) throw error;
    return send(path, options);
  }
}

async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  const all = { Accept: "application/json", ...headers };
  if (!SAFE.has(method) && csrf) all["X-CSRF-Token"] = csrf;
  let response;
  try {
    response = await fetch(address(path), {
      method,
      body,
      headers: all,
      signal,
      credentials: "same-origin",
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(
      0,
      "unreachable",
      "The gateway cannot be reached. It may be restarting, or the network is down.",
    );
  }
  if (!response.ok) throw await problem(response);
  return response;
}

async function problem(response) {
  let code = "unknown";
  let detail = response.statusText || `status ${response.status}`;
  try {
    const body = await response.json();
    code = body.code ?? code;
    detail = body.detail ?? detail;
  } catch {
    // The gateway did not send this answer; a proxy may have.
  }
  const retry = Number(response.headers.get("Retry-After"));
  return new ApiError(response.status, code, detail, {
    retryAfter: retry > 0 ? retry : null,
    requestId: response.headers.get("X-Request-Id"),
  });
}

const json = (method, value) => ({
  method,
  body: JSON.stringify(value),
  headers: { "Content-Type": "application/json" },
});
const part = encodeURIComponent;

function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

export const campaigns = (values) => request(`v1/campaigns${query(values)}`);
export const campaign = (id) => request(`v1/campaigns/${part(id)}`);
export const models = () => request("v1/models");
export const model = (name) => request(`v1/models/${part(name)}`);
export const reportAddress = (name) => address(`v1/models/${part(name)}/report`);
export const samples = (name) => request(`v1/models/${part(name)}/samples`);
const samplePath = (name, file) => `v1/models/${part(name)}/samples/${part(file)}`;
export const sampleAddress = (name, file) => address(samplePath(name, file));
export const sample = async (name, file, signal) =>
  (await ask(samplePath(name, file), { headers: { Accept: "image/png" }, signal })).blob();

/** `explain`: none or all; a caller who may not see explanations is refused if they ask for them. */
export function predict(blob, { model, explain, certify, signal }) {
  const path = `v1/predict${query({ model, explain, certify })}`;
  return request(path, {
    method: "POST",
    body: blob,
    headers: { "Content-Type": blob.type || "application/octet-stream" },
    signal,
  });
}

export const events = (filters, signal) => request(`v1/events${query(filters)}`, { signal });
export const event = (id, signal) => request(`v1/events/${part(id)}`, { signal });
export const eventStats = (filters, signal) => request(`v1/events/stats${query(filters)}`, { signal });
export const pictureAddress = (id, kind) => address(`v1/events/${part(id)}/image${query({ kind })}`);
export const review = (id, change) => request(`v1/events/${part(id)}`, json("PATCH", change));
export const streamAddress = () => address("v1/events/stream");

export async function session() {
  return remember(await request("v1/session"));
}

export async function logIn(key) {
  who = null;
  return remember(await request("v1/session", json("POST", { key })));
}

export async function logOut() {
  await request("v1/session", { method: "DELETE" });
  csrf = who = null;
}

function remember(answer) {
  // What this page shows is the earlier caller's.
  if (who !== null && answer.key_id !== who) location.reload();
  csrf = answer.csrf;
  who = answer.key_id;
  return answer;
}
