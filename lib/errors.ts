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
  const typed = systemError(thrown);
  if (typed instanceof ToolsmithError) return typed;
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

/** What {@linkcode systemError} takes. */
export interface SystemErrorOptions {
  /** What could not be done, with the value. @default {undefined} to access the path, or to run the program, that the system names */
  what?: string;
  /** The path, for want of one in the system's words. @default {undefined} */
  path?: string;
  /** The code, unless the disk is full. @default {"file_unreadable"} */
  code?: ErrorCode;
  /** The next step, unless the disk is full. @default {undefined} the usual one for such an error */
  hint?: string;
}

/** The next step, by the system's code (errno(3)), or its number where Deno has no code. */
const SYSTEM_HINTS: Record<string, string> = {
  27: "use a file system for files of that size, or raise the limit: ulimit -f",
  E2BIG: "pass fewer or shorter arguments",
  EACCES: "fix its owner or mode",
  EAGAIN: "end other processes, or raise their limit: ulimit -u",
  EILSEQ: "rename it: only names in UTF-8 can be used",
  EIO: "check the disk: the system's log has more",
  EISDIR: "name a file, not a directory",
  ELOOP: "fix its symbolic links: they lead in a circle",
  EMFILE: "raise the limit of open files: ulimit -n",
  ENAMETOOLONG: "choose a shorter name",
  ENFILE: "end other processes: this host has too many open files",
  ENOENT: "check the path, and of a program PATH",
  ENOMEM: "end other processes, or add memory",
  ENOTDIR: "check the path: a part of it is a file, not a directory",
  EPERM: "fix its owner or mode",
  EROFS: "choose a place that can be written: this file system is read-only",
};

/** As in `Failed to spawn 'a': Not a directory (os error 20)` and `Not a directory (os error 20): stat 'a/b'`. */
const SYSTEM_WORDS =
  /^(?:Failed to spawn '(.*?)': )?(.*?)(?: \(os error \d+\)(?:: \w+(?: '(.*)')?)?)?$/s;

/**
 * Makes a typed error of one that the system reported for a file or a program.
 * Deno's own has no next step, and not always the path.
 *
 * @param thrown Anything that was caught.
 * @param options What could not be done, and what to do about it.
 * @returns The typed error; whatever else was caught, as it is.
 *
 * @example Name the variable that a path came from
 * ```ts
 * import { systemError } from "./errors.ts";
 *
 * await Deno.stat("/tmp").catch((error) => {
 *   const what = "Cannot use TMPDIR=/tmp";
 *   throw systemError(error, { what, hint: "set TMPDIR to a directory" });
 * });
 * ```
 */
export function systemError(
  thrown: unknown,
  options: SystemErrorOptions = {},
): unknown {
  // Its message may quote the system's words.
  if (thrown instanceof ToolsmithError) return thrown;
  const errno = errnoOf(thrown);
  if (errno === undefined) return thrown;
  const [, program, words, path = options.path] =
    SYSTEM_WORDS.exec((thrown as Error).message) ?? [];
  const subject = program !== undefined
    ? `Cannot run ${program}`
    : path !== undefined
    ? `Cannot access ${path.replace("' -> '", " -> ")}`
    : "The system reports an error";
  const reason = words.replace(/^[A-Z](?=[a-z])/, (it) => it.toLowerCase())
    .replace("entity not found", "no such program");
  const message = `${options.what ?? subject}: ${reason}`;
  if (errno === "ENOSPC" || errno === "EDQUOT") {
    return new ToolsmithError("disk_full", message, {
      hint: "free some space, or put the cache elsewhere: TOOLSMITH_CACHE=DIR",
      cause: thrown,
    });
  }
  const usual = SYSTEM_HINTS[errno] ?? "check the path, and the system's log";
  const { code = "file_unreadable", hint = usual } = options;
  return new ToolsmithError(code, message, { hint, cause: thrown });
}

/** The system's code, or its number; `undefined` for those of networks. */
function errnoOf(thrown: unknown): string | undefined {
  const { code, message } = (thrown ?? {}) as { [name: string]: unknown };
  if (typeof code === "string" && /^E[A-Z0-9]+$/.test(code)) {
    return /^E(?:ADDR|CONN|HOST|NET|PIPE|TIMEDOUT)/.test(code)
      ? undefined
      : code;
  }
  if (thrown instanceof Deno.errors.PermissionDenied) return "EACCES";
  if (/is not valid UTF-8$/.test(`${message}`)) return "EILSEQ";
  // The words of fetch() end so, too.
  if (thrown instanceof TypeError) return undefined;
  return /\(os error (\d+)\)/.exec(`${message}`)?.[1];
}
