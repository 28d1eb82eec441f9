/**
 * What is written down about a detached VM: `machine.json`, as its readers and
 * its writer see it.
 *
 * @module
 */
import type { GuestShare } from "../qemu/args.ts";
import { isObject, type JsonObject } from "../system/json.ts";
import type { VmFacts } from "./vm.ts";

/** What is written down about a detached VM. */
export interface DetachedVmRecord extends VmFacts {
  /** Layout of the file. */
  layout: 1;
  /** Digest of the image, where it is known. */
  digest?: string;
  /** When the machine was detached, as an ISO 8601 time. */
  since: string;
  /** Time that a stop gives the guest to power down, in milliseconds. */
  graceMs: number;
  /**
   * Digest of a token in the machine's directory; without it the directory is
   * never removed. Absent where an earlier version wrote the record.
   */
  token?: string;
}

const ACCELERATORS = new Set<unknown>(["kvm", "hvf", "tcg"]);

/**
 * Writes a record.
 *
 * @param record The record.
 * @returns JSON; the machine's directory is called `folder` in it.
 */
export function formatRecord(record: DetachedVmRecord): string {
  const { dir, ...rest } = record;
  return JSON.stringify({ ...rest, folder: dir }, null, 2) + "\n";
}

/**
 * Reads a record.
 *
 * @param text What {@linkcode formatRecord} wrote, or anything else.
 * @returns The record; `undefined` for what is none.
 */
export function parseRecord(text: string): DetachedVmRecord | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (!isObject(value)) return undefined;
  const { folder: dir, ...rest } = value;
  const record = { ...rest, dir };
  return isRecord(record) ? record : undefined;
}

function isRecord(
  value: JsonObject,
): value is JsonObject & DetachedVmRecord {
  return value.layout === 1 &&
    ["image", "dir", "version", "since"].every((name) =>
      typeof value[name] === "string"
    ) &&
    ["pid", "memory", "cpus", "graceMs"].every((name) =>
      Number.isSafeInteger(value[name]) && value[name] as number >= 0
    ) &&
    // Signals to 0 and 1 would reach this process's group, or the system's init.
    value.pid as number > 1 &&
    ACCELERATORS.has(value.accelerator) &&
    typeof value.network === "boolean" &&
    (value.digest === undefined || typeof value.digest === "string") &&
    (value.token === undefined || typeof value.token === "string") &&
    Array.isArray(value.shares) && value.shares.every(isShare);
}

function isShare(value: unknown): value is GuestShare {
  return isObject(value) && typeof value.path === "string" &&
    typeof value.tag === "string" && typeof value.writable === "boolean";
}
