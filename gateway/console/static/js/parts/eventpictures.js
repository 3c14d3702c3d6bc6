// The pictures that the audit trail keeps of an event.
import { pictureAddress } from "../api.js";
import { empty } from "./notices.js";
import { viewer } from "./viewer.js";

export function eventPictures(event, manifest) {
  if (!event.pictures.includes("input"))
    return empty("No pictures", "They were never kept (privacy setting), or retention has removed them.");
  // What the trail calls neutral is the mask of what was inpainted.
  const names = { input: "input", saliency: "saliency", roi: "roi", roa: "roa", neutral: "mask" };
  const sources = Object.fromEntries(event.pictures.map((kind) => [names[kind], pictureAddress(event.id, kind)]));
  return viewer(sources, {
    description: `The input as the network saw it; answered as ${event.before.label}`,
    unsuspected: !event.neutralization,
    manifest,
  });
}
