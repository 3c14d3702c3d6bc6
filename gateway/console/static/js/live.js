// New events as they arrive: by server-sent events, or by polling where a stream cannot be opened.
import * as api from "./api.js";

const POLL_MS = 5000;

/**
 * Calls `onEvent(event)` for each event of the stream, `onPoll()` whenever it is time to ask again, and
 * `onState("live" | "polling" | "offline")`. Returns a function that ends it.
 */
export function follow({ onEvent, onPoll, onState }) {
  let timer = null;
  const source = new EventSource(api.streamAddress());
  source.addEventListener("open", () => {
    clearInterval(timer);
    timer = null;
    onState("live");
    // Fetch the events that came before the stream was open, or while it was down.
    onPoll();
  });
  source.addEventListener("event", (message) => onEvent(JSON.parse(message.data)));
  source.addEventListener("error", () => {
    // A refused stream stays closed; the browser reopens a broken one by itself.
    timer ??= setInterval(poll, POLL_MS);
    onState(source.readyState === EventSource.CLOSED ? "polling" : "offline");
  });
  return () => {
    source.close();
    clearInterval(timer);
  };

  async function poll() {
    const reached = await onPoll();
    if (source.readyState !== EventSource.OPEN) onState(reached ? "polling" : "offline");
  }
}
