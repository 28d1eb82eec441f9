/**
 * Each event in one line, for a person.
 *
 * @module
 */
import type { ToolsmithEvent } from "../events.ts";
import { bytesText, secondsText, shortDigest } from "./format.ts";

type EventOf<T> = Extract<ToolsmithEvent, { type: T }>;

/** A line for each event; `undefined` for what a person need not read. */
type Lines = {
  [T in ToolsmithEvent["type"]]: (event: EventOf<T>) => string | undefined;
};

/**
 * Says an event in one line.
 *
 * @param event The event.
 * @returns The line, or `undefined` for what a person need not read.
 */
export function describe(event: ToolsmithEvent): string | undefined {
  const line = LINES[event.type] as (event: ToolsmithEvent) =>
    | string
    | undefined;
  return line(event);
}

const unsaid = () => undefined;

const LINES: Lines = {
  lock_wait: ({ image }) => `waiting: another process is getting ${image}`,
  cache_hit: ({ image, digest }) => `cached ${image} ${shortDigest(digest)}`,
  cache_corrupt: ({ path, reason }) =>
    `warning: ${path} is damaged (${reason}); getting it again`,
  manifest_resolved: ({ file, bytes, source }) =>
    `found ${file} (${bytesText(bytes)}) in ${source}`,
  download_start: ({ image, bytes, source, resumed, connections }) =>
    [
      `getting ${image}`,
      bytes !== null ? `, ${bytesText(bytes)},` : "",
      ` from ${source}`,
      bytes && resumed > 0
        ? `, resuming at ${Math.floor(resumed / bytes * 100)} %`
        : "",
      connections > 1 ? `, ${connections} connections` : "",
    ].join(""),
  ranges_unavailable: ({ image, reason }) =>
    `${image} comes by oras pull: ${reason}`,
  mirror_failed: ({ mirror, reason }) =>
    `warning: mirror ${mirror} is given up: ${reason}`,
  download_progress: unsaid,
  download_end: ({ bytes, elapsedMs }) => {
    const rate = bytes / Math.max(elapsedMs, 1) * 1000;
    return `got ${bytesText(bytes)} in ${secondsText(elapsedMs)} (${
      bytesText(rate)
    }/s)`;
  },
  retry: ({ message, attempt, attempts, delayMs }) =>
    `warning: ${message}; attempt ${attempt} of ${attempts} in ${
      secondsText(delayMs)
    }`,
  checksum_verified: ({ digest }) => `verified ${digest}`,
  cache_placed: unsaid,
  image_inspected: ({ path, bytes, virtualSize, compressed }) =>
    `publishing ${path}: ${bytesText(bytes)}, a disk of ${
      bytesText(virtualSize)
    }${compressed ? ", compressed" : ""}`,
  checksum_progress: unsaid,
  publish_start: ({ file, digest }) => `pushing ${file}, ${digest}`,
  push_end: ({ bytes, elapsedMs, reference, digest }) =>
    `pushed ${bytesText(bytes)} in ${
      secondsText(elapsedMs)
    }: ${reference}@${digest}`,
  publish_poll: ({ outcome, attempt, attempts, message }) =>
    outcome === "served"
      ? undefined
      : `not served yet (${attempt} of ${attempts}): ${message}`,
  publish_verified: ({ verify }) =>
    verify === "pull"
      ? "verified: pulled back, byte for byte"
      : "verified: the registry serves the same digests",
  vm_boot: ({ how, version, accelerator, memory, cpus }) =>
    how === "restore"
      ? undefined
      : `booting with QEMU ${version}, ${accelerator}, ${memory} MiB, ${
        cpus === 1 ? "1 processor" : `${cpus} processors`
      }`,
  boot_ready: ({ how, elapsedMs, agent }) => {
    const time = `${how} in ${secondsText(elapsedMs)}`;
    if (agent === undefined) return time;
    const whose = agent === "toolsmith" ? "Toolsmith's own" : agent;
    return `${time}, guest agent: ${whose}`;
  },
  state_saved: ({ bytes }) =>
    `saved the machine for the next start: ${bytesText(bytes)}`,
  command_dispatch: unsaid,
  command_end: unsaid,
  export_created: ({ path }) => `created ${path}`,
  shutdown: unsaid,
  warning: ({ message }) => `warning: ${message}`,
};
