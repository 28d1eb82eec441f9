/**
 * The record of a detached VM, `machine.json`: its fields, parser and formatter.
 */
import { ACCELERATORS } from "../qemu/accelerator.ts";
import type { GuestShare } from "../qemu/args.ts";
import { isJsonObject, type JsonObject } from "../system/json.ts";
import type { VmFacts } from "./vm.ts";

/** The record of a detached VM. */
export interface DetachedVmRecord extends VmFacts {
  /** Version of the file's layout. */
  layout: 1;
  /** Digest of the image, if known. */
  digest?: string;
  /** When the VM was detached, as an ISO 8601 time. */
  since: string;
  /** Default grace period of a stop, in milliseconds. */
  graceMs: number;
  /**
   * Digest of the token in the VM's directory, which is not removed without it. Absent
   * in records of earlier versions.
   */
  token?: string;
}

/** Formats a record as JSON; the VM's directory is called `folder` there. */
export function formatDetachedVmRecord(record: DetachedVmRecord): string {
  const { dir, ...rest } = record;
  return JSON.stringify({ ...rest, folder: dir }, null, 2) + "\n";
}

/** Returns the record in parsed JSON; `undefined` if a field is missing or invalid. */
export function parseDetachedVmRecord(
  { folder: dir, ...rest }: JsonObject,
): DetachedVmRecord | undefined {
  const value: JsonObject = { ...rest, dir };
  const isValid = value.layout === 1 &&
    ["image", "dir", "version", "since"].every((name) =>
      typeof value[name] === "string"
    ) &&
    ["pid", "memory", "cpus", "graceMs"].every((name) =>
      Number.isSafeInteger(value[name]) && value[name] as number >= 0
    ) &&
    // A signal to 0 would reach this process group, one to 1 the init process.
    value.pid as number > 1 &&
    ACCELERATORS.some((name) => name === value.accelerator) &&
    typeof value.network === "boolean" &&
    (value.digest === undefined || typeof value.digest === "string") &&
    (value.token === undefined || typeof value.token === "string") &&
    Array.isArray(value.shares) && value.shares.every(isGuestShare);
  return isValid ? value as JsonObject & DetachedVmRecord : undefined;
}

function isGuestShare(value: unknown): value is GuestShare {
  return isJsonObject(value) && typeof value.path === "string" &&
    typeof value.tag === "string" && typeof value.writable === "boolean";
}
