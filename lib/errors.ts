/**
 * The one error type of Toolsmith, and the table of its codes.
 *
 * @module
 */

/**
 * Every code that a {@linkcode ToolsmithError} can carry, with the exit status
 * of the command line and what it means. Codes and numbers are stable: scripts
 * rely on them.
 */
export const ERROR_CODES = {
  failed: [1, "Something failed that no other code names"],
  usage: [2, "The command line is wrong"],
  manifest_not_found: [10, "No manifest at the given or usual place"],
  manifest_invalid: [11, "The manifest is not what the guide describes"],
  reference_invalid: [12, "An image source or registry reference is malformed"],
  source_not_found: [13, "The local image file does not exist"],
  file_unreadable: [14, "A local file cannot be read or written"],
  oras_not_found: [20, "The oras program is missing"],
  oras_failed: [21, "oras failed in a way that Toolsmith does not know"],
  permission_missing: [22, "Deno was not given a permission that is needed"],
  credentials_failed: [23, "The Docker credential helper failed"],
  unauthorized: [30, "The registry wants credentials, or refused these"],
  forbidden: [31, "The registry knows you and says no"],
  not_found: [32, "The registry has no such repository, tag or blob"],
  rate_limited: [33, "The registry asks to slow down"],
  registry_unavailable: [34, "The registry answered with a server error"],
  tls_failed: [35, "The TLS connection could not be trusted or made"],
  dns_failed: [36, "The registry's host name does not resolve"],
  connection_failed: [37, "The registry's host refused or did not answer"],
  transfer_interrupted: [38, "The transfer was cut before its end"],
  transfer_stalled: [39, "The transfer stopped growing"],
  payload_missing: [40, "The artifact holds no .qcow2 file"],
  payload_ambiguous: [41, "Several .qcow2 files, none with the digest"],
  artifact_unsafe: [42, "The artifact has a layer that must not be unpacked"],
  checksum_mismatch: [43, "The bytes are not those of the expected digest"],
  image_invalid: [44, "The file is not a QCOW2 image"],
  image_unsafe: [45, "The QCOW2 refers to another file"],
  redirect_refused: [46, "The server redirects to where it must not"],
  disk_full: [50, "There is not enough free space"],
  cache_unwritable: [51, "The cache cannot be written"],
  offline_miss: [52, "Offline, and the image is not in the cache"],
  publish_mismatch: [60, "The registry serves other bytes than were pushed"],
  publish_timeout: [61, "The registry did not serve the artifact in time"],
  qemu_not_found: [70, "The QEMU program is missing"],
  boot_failed: [71, "QEMU ended, or the image does not boot"],
  guest_not_ready: [72, "The guest agent did not answer in time"],
  guest_panicked: [73, "The guest's kernel panicked"],
  guest_failed: [74, "The guest agent refused or broke off"],
  machine_not_found: [75, "No running machine to use or to stop"],
  tool_forbidden: [76, "The manifest's operations do not allow the tool"],
  firmware_not_found: [77, "The firmware that the image needs is missing"],
  timeout: [124, "The time limit that was asked for has passed"],
  command_not_found: [127, "The command does not exist in the guest"],
  cancelled: [130, "Cancelled by the caller or by Ctrl-C"],
} as const satisfies Record<string, readonly [number, string]>;

/** One of the stable codes in {@linkcode ERROR_CODES}. */
export type ErrorCode = keyof typeof ERROR_CODES;

/** What {@linkcode ToolsmithError} takes besides its code and message. */
export interface ToolsmithErrorOptions {
  /** The next step for the person who reads the message. */
  hint?: string;
  /** The error that led to this one. */
  cause?: unknown;
}

/**
 * Every failure that Toolsmith reports.
 *
 * @example Tell one failure from another
 * ```ts
 * import { ToolsmithError } from "./errors.ts";
 *
 * const error = new ToolsmithError("oras_not_found", "oras not found");
 * if (error.code !== "oras_not_found") throw error;
 * ```
 */
export class ToolsmithError extends Error {
  /** The stable code, to branch on. */
  readonly code: ErrorCode;
  /** The next step, or `undefined` where there is none to give. */
  readonly hint: string | undefined;

  /**
   * Makes an error.
   *
   * @param code The stable code.
   * @param message What could not be done, with the value; no final period.
   * @param options The hint and the cause.
   */
  constructor(
    code: ErrorCode,
    message: string,
    options: ToolsmithErrorOptions = {},
  ) {
    super(message, { cause: options.cause });
    this.name = "ToolsmithError";
    this.code = code;
    this.hint = options.hint;
  }

  /** The exit status that the command line ends with. */
  get exitStatus(): number {
    return ERROR_CODES[this.code][0];
  }
}

/**
 * Wraps whatever was thrown into a {@linkcode ToolsmithError}.
 *
 * @param thrown Anything that was caught.
 * @returns The same object where it is one already.
 */
export function toToolsmithError(thrown: unknown): ToolsmithError {
  if (thrown instanceof ToolsmithError) return thrown;
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  if (thrown instanceof Deno.errors.NotCapable) {
    return new ToolsmithError("permission_missing", message, {
      hint: "grant the permission that the message names, or use -A",
      cause: thrown,
    });
  }
  if (thrown instanceof Deno.errors.PermissionDenied) {
    return new ToolsmithError("file_unreadable", message, {
      hint: "fix its owner or mode",
      cause: thrown,
    });
  }
  if (isDiskFull(thrown)) {
    return new ToolsmithError("disk_full", message, {
      hint: "free some space, or put the cache elsewhere: TOOLSMITH_CACHE=DIR",
      cause: thrown,
    });
  }
  if (thrown instanceof DOMException && thrown.name === "AbortError") {
    return new ToolsmithError("cancelled", message, { cause: thrown });
  }
  // What AbortSignal.timeout() throws.
  if (thrown instanceof DOMException && thrown.name === "TimeoutError") {
    return new ToolsmithError("timeout", message, {
      hint: "allow more time",
      cause: thrown,
    });
  }
  return new ToolsmithError("failed", message, { cause: thrown });
}

function isDiskFull(thrown: unknown): boolean {
  const code = (thrown as { code?: unknown } | null)?.code;
  return code === "ENOSPC" || code === "EDQUOT";
}
