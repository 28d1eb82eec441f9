/**
 * Reports what a guest's network has refused, each host once, and sums all decisions up.
 */
import type { ToolsmithEvent } from "../events.ts";

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
    const isKept = counts.has(name) || counts.size < MAX_HOSTS;
    const key = isKept ? name : "*";
    counts.set(key, (counts.get(key) ?? 0) + 1);
    const hosts = this.#refusedHosts;
    const isNew = !allowed && !hosts.has(host);
    const isTooMuch = hosts.size >= MAX_HOSTS;
    if (!isNew || isTooMuch && hosts.has("*")) return undefined;
    hosts.add(isTooMuch ? "*" : host);
    return `network: refused ${isTooMuch ? "*" : name}: ${reason}`;
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
