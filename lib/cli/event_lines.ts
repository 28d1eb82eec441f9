/** Formats each event as one line of text. */
import type { ToolsmithEvent } from "../events.ts";
import { formatBytes, formatDuration, shortDigest } from "./format.ts";

/** Returns `undefined` for an event that is not shown as text. */
export function eventLine<T extends ToolsmithEvent["type"]>(
  event: ToolsmithEvent<T>,
): string | undefined {
  return EVENT_FORMATTERS[event.type]?.(event);
}

const percent = (share: number) => `${(share * 100).toFixed(1)} %`;

/** EgressReport prints some `egress` events. */
const EVENT_FORMATTERS: {
  [T in ToolsmithEvent["type"]]?: (e: ToolsmithEvent<T>) => string | undefined;
} = {
  lock_wait: ({ image }) =>
    `waiting: another process is working on ${image} in the cache`,
  cache_hit: ({ image, digest }) =>
    `already cached: ${image} ${shortDigest(digest)}`,
  cache_corrupt: ({ path, reason }) =>
    `warning: ${path} is damaged (${reason}); not using it`,
  manifest_resolved: ({ file, bytes, source }) =>
    `found ${file} (${formatBytes(bytes)}) in ${source}`,
  signature_verified: ({ image, signer }) => `${image} is signed by ${signer}`,
  download_start: ({ image, bytes, source, resumed, connections }) =>
    [
      `downloading ${image}`,
      bytes !== null ? ` (${formatBytes(bytes)})` : "",
      ` from ${source}`,
      connections > 1 ? ` over ${connections} connections` : "",
      bytes && resumed > 0
        ? `, resuming at ${Math.floor(resumed / bytes * 100)} %`
        : "",
    ].join(""),
  ranges_unavailable: ({ image, reason }) =>
    `falling back to oras pull for ${image}: ${reason}`,
  mirror_failed: ({ mirror, reason }) =>
    `warning: mirror ${mirror} failed: ${reason}`,
  update_start: ({ image, from, bytes, total }) =>
    `updating ${image}: ${formatBytes(bytes)} of ${formatBytes(total)} ` +
    `to download (${percent(bytes / total)}), the rest from ${from}`,
  update_declined: ({ image, reason }) =>
    `downloading all of ${image}: ${reason}`,
  // Event views draw a bar instead.
  download_progress: ({ bytes }) => `downloaded ${formatBytes(bytes)}`,
  download_end: ({ bytes, elapsedMs }) => {
    const rate = formatBytes(bytes / Math.max(elapsedMs, 1) * 1000);
    const time = formatDuration(elapsedMs);
    return `downloaded ${formatBytes(bytes)} in ${time} (${rate}/s)`;
  },
  retry: ({ message, attempt, attempts, delayMs }) =>
    `warning: ${message}; retrying in ${formatDuration(delayMs)} ` +
    `(attempt ${attempt} of ${attempts})`,
  checksum_verified: ({ digest }) => `verified ${digest}`,
  image_inspected: ({ path, bytes, virtualSize, compressed }) =>
    `publishing ${path}: ${formatBytes(bytes)}, virtual size ` +
    formatBytes(virtualSize) + (compressed ? ", compressed" : ""),
  compress_start: ({ path }) => `compressing ${path}`,
  update_predicted: ({ from, bytes, total }) =>
    `a host with ${from} will download ${formatBytes(bytes)} of ` +
    `${formatBytes(total)} (${percent(bytes / total)})`,
  publish_start: ({ file, digest }) => `pushing ${file}, ${digest}`,
  push_end: ({ bytes, elapsedMs, reference, digest }) =>
    `pushed ${formatBytes(bytes)} in ${formatDuration(elapsedMs)}: ` +
    `${reference}@${digest}`,
  publish_poll: ({ outcome, attempt, attempts, message }) =>
    outcome === "served"
      ? undefined
      : `the registry does not serve the artifact yet (attempt ${attempt} of ${attempts}): ${message}`,
  publish_verified: ({ verify }) =>
    verify === "pull"
      ? "verified: pulled the image and compared its digest"
      : "verified: the registry serves the same digests",
  vm_boot: ({ how, version, accelerator, memory, cpus }) =>
    how === "restore"
      ? undefined
      : `booting with QEMU ${version}, ${accelerator}, ${memory} MiB, ` +
        (cpus === 1 ? "1 processor" : `${cpus} processors`),
  boot_ready: ({ how, elapsedMs, agent }) => {
    const time = `${how} in ${formatDuration(elapsedMs)}`;
    if (agent === undefined) return time;
    const whose = agent === "toolsmith" ? "Toolsmith's own" : agent;
    return `${time}, guest agent: ${whose}`;
  },
  state_saved: ({ bytes }) =>
    `saved a snapshot for the next start: ${formatBytes(bytes)}`,
  export_created: ({ path }) => `created ${path}`,
  warning: ({ message }) => `warning: ${message}`,
};

/** The guest chooses the names: it must not fill the terminal or the memory. */
const MAX_HOSTS = 1000;

/** Collects `egress` events. */
export class EgressReport {
  // Apart, as what is refused must not hide what is allowed.
  readonly #allowed = new Map<string, number>();
  readonly #refused = new Map<string, number>();
  readonly #refusedHosts = new Set<string>();

  /** Returns a line for the first refusal of a host. */
  add(
    { allowed, host, port, reason }: ToolsmithEvent<"egress">,
  ): string | undefined {
    const name = port === null ? host : `${host}:${port}`;
    const counts = allowed ? this.#allowed : this.#refused;
    const counted = nameOrRest(name, counts);
    counts.set(counted, (counts.get(counted) ?? 0) + 1);
    const shown = nameOrRest(host, this.#refusedHosts);
    if (allowed || this.#refusedHosts.has(shown)) return undefined;
    this.#refusedHosts.add(shown);
    return `network: refused ${shown === host ? name : shown}: ${reason}`;
  }

  /** One line for each host and port, the refused ones last. */
  summary(): string[] {
    const lines = (verdict: string, counts: Map<string, number>) =>
      [...counts].map(([name, count]) =>
        `network: ${verdict} ${name} (${count} times)`
      );
    return [
      ...lines("allowed", this.#allowed),
      ...lines("refused", this.#refused),
    ];
  }
}

/** Returns `*` for a new name if too many are kept. */
function nameOrRest(
  name: string,
  kept: { has(name: string): boolean; size: number },
): string {
  return kept.has(name) || kept.size < MAX_HOSTS ? name : "*";
}
