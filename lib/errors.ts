/** Toolsmith's error type, and the table of its codes. */

/**
 * Every code of a {@linkcode ToolsmithError}, with the exit status of the command
 * line and the meaning. Codes and numbers are stable: scripts rely on them.
 */
export const ERROR_CODES = {
  failed: [1, "An error without a code of its own"],
  usage: [2, "The command line is wrong"],
  manifest_not_found: [10, "No manifest at the given or default path"],
  manifest_invalid: [11, "The manifest is malformed or a field is invalid"],
  reference_invalid: [12, "An image source or registry reference is malformed"],
  source_not_found: [13, "The local image file does not exist"],
  file_unreadable: [14, "A local file cannot be read or written"],
  oras_not_found: [20, "The oras program is missing"],
  oras_failed: [21, "oras failed with an error that Toolsmith does not know"],
  permission_missing: [22, "Deno lacks a required permission"],
  credentials_failed: [23, "The Docker credential helper failed"],
  unauthorized: [30, "The registry requires credentials, or rejected them"],
  forbidden: [31, "The registry denies access to this user"],
  not_found: [32, "The registry has no such repository, tag or blob"],
  rate_limited: [33, "The registry limits the rate of requests"],
  registry_unavailable: [34, "The registry answered with a server error"],
  tls_failed: [35, "The TLS handshake failed, or the certificate is untrusted"],
  dns_failed: [36, "The registry's host name does not resolve"],
  connection_failed: [37, "The host refused the connection or did not answer"],
  transfer_interrupted: [38, "The transfer ended before it was complete"],
  transfer_stalled: [
    39,
    "The transfer made no progress before the stall timeout",
  ],
  payload_missing: [40, "The artifact has no .qcow2 file, or no chunk index"],
  payload_ambiguous: [
    41,
    "Several .qcow2 files, none with the expected digest",
  ],
  artifact_unsafe: [42, "The artifact has a layer that oras would unpack"],
  checksum_mismatch: [43, "The bytes do not match the expected digest"],
  image_invalid: [44, "The file is not a QCOW2 image"],
  image_unsafe: [45, "The QCOW2 refers to another file"],
  redirect_refused: [46, "The server redirects to a forbidden URL"],
  signature_missing: [47, "The artifact has no signature"],
  signature_invalid: [48, "No signature satisfies the manifest's rule"],
  trust_root_unavailable: [49, "The roots that verify signatures are missing"],
  disk_full: [50, "There is not enough free space"],
  cache_unwritable: [51, "The cache is not writable"],
  offline_miss: [52, "--offline, and the image is not in the cache"],
  publish_mismatch: [60, "The registry serves other bytes than were pushed"],
  publish_timeout: [61, "The registry did not serve the artifact in time"],
  qemu_not_found: [70, "The QEMU program is missing"],
  boot_failed: [71, "QEMU ended, or the image does not boot"],
  guest_not_ready: [72, "The guest agent did not answer in time"],
  guest_panicked: [73, "The guest's kernel panicked"],
  guest_failed: [74, "The guest agent rejected a request or disconnected"],
  machine_not_found: [75, "No running VM to use or to stop"],
  tool_forbidden: [76, "The manifest's operations do not allow the tool"],
  firmware_not_found: [77, "The firmware that the image needs is missing"],
  timeout: [124, "The given time limit has passed"],
  command_not_found: [127, "The command does not exist in the guest"],
  cancelled: [130, "Cancelled by the caller or by Ctrl-C"],
} as const satisfies Record<string, readonly [number, string]>;

/** One of the stable codes in {@linkcode ERROR_CODES}. */
export type ErrorCode = keyof typeof ERROR_CODES;

/** Hint and cause of a {@linkcode ToolsmithError}. */
export interface ToolsmithErrorOptions {
  /** The next step for the person who reads the message. */
  hint?: string;
  /** The underlying error. */
  cause?: unknown;
}

/**
 * The error of every failure that Toolsmith reports.
 *
 * @example Handle one error code
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
  /** The next step, or `undefined`. */
  readonly hint: string | undefined;

  /**
   * Makes an error.
   *
   * @param code The stable code.
   * @param message What failed, with the value; no final period.
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

  /** The exit status of the command line for this code. */
  get exitStatus(): number {
    return ERROR_CODES[this.code][0];
  }
}

/** Code and hint of errors of the platform, by their names. */
const PLATFORM_ERRORS: Record<string, [ErrorCode, hint?: string]> = {
  NotCapable: [
    "permission_missing",
    "run deno with the permission that the message names, or with -A",
  ],
  AbortError: ["cancelled"],
  // AbortSignal.timeout() throws this.
  TimeoutError: ["timeout", "raise the time limit"],
};

/** Converts any caught value to a {@linkcode ToolsmithError}; returns one unchanged. */
export function toToolsmithError(thrown: unknown): ToolsmithError {
  // Of an error and one of the clean-up after it.
  if (thrown instanceof SuppressedError) return toToolsmithError(thrown.error);
  const typed = systemError(thrown);
  if (typed instanceof ToolsmithError) return typed;
  const { name, message } = thrown instanceof Error
    ? thrown
    : { name: "", message: String(thrown) };
  const [code, hint] = PLATFORM_ERRORS[name] ?? ["failed"];
  return new ToolsmithError(code, message, { hint, cause: thrown });
}

/** Options of {@linkcode systemError}. */
export interface SystemErrorOptions {
  /** Start of the message, such as "Cannot write to PATH". @default {undefined} derived from the path or program that the system names */
  messagePrefix?: string;
  /** The path to name if the system's message has none. @default {undefined} */
  fallbackPath?: string;
  /** The error's code; a full disk is always `disk_full`. @default {"file_unreadable"} */
  code?: ErrorCode;
  /** The next step. @default {undefined} chosen by the system's error code */
  hint?: string;
}

/** Hints by errno name (errno(3)), or by number where Deno has no name. */
const HINTS_BY_ERRNO: Record<string, string> = {
  27: "use a file system for files of that size, or raise the limit: ulimit -f",
  E2BIG: "pass fewer or shorter arguments",
  EACCES: "fix the owner or mode of the file",
  EAGAIN: "end other processes, or raise the process limit: ulimit -u",
  EILSEQ: "rename the file: only UTF-8 names are supported",
  EIO: "check the disk, and the system's log",
  EISDIR: "name a file, not a directory",
  ELOOP: "fix the path's symbolic links: they form a loop",
  EMFILE: "raise the limit of open files: ulimit -n",
  ENAMETOOLONG: "choose a shorter name",
  ENFILE: "end other processes: this host has too many open files",
  ENOENT: "check that the path exists, or that the program is in PATH",
  ENOMEM: "end other processes, or add memory",
  ENOTDIR: "check the path: a part of it is a file, not a directory",
  EPERM: "fix the owner or mode of the file",
  EROFS: "choose a writable directory: this file system is read-only",
};

/** Matches `Failed to spawn 'a': Not a directory (os error 20)` and `Not a directory (os error 20): stat 'a/b'`. */
const SYSTEM_MESSAGE_PATTERN =
  /^(?:Failed to spawn '(.*?)': )?(.*?)(?: \(os error \d+\)(?:: \w+(?: '(.*)')?)?)?$/s;

/**
 * Converts an operating system error about a file or a program, as Deno's own has
 * no hint and not always a path. Returns any other caught value unchanged.
 */
export function systemError(
  thrown: unknown,
  options: SystemErrorOptions = {},
): unknown {
  // Its message may quote the system's message.
  if (thrown instanceof ToolsmithError) return thrown;
  const errno = errnoOf(thrown);
  if (errno === undefined) return thrown;
  const [, program, words, path = options.fallbackPath] =
    SYSTEM_MESSAGE_PATTERN.exec((thrown as Error).message) ?? [];
  const subject = program !== undefined
    ? `Cannot run ${program}`
    : path !== undefined
    ? `Cannot access ${path.replace("' -> '", " -> ")}`
    : "The system reports an error";
  const reason = words.replace(/^[A-Z](?=[a-z])/, (it) => it.toLowerCase())
    .replace("entity not found", "no such program");
  const message = `${options.messagePrefix ?? subject}: ${reason}`;
  if (errno === "ENOSPC" || errno === "EDQUOT") {
    return new ToolsmithError("disk_full", message, {
      hint: "free disk space, or move the cache elsewhere: TOOLSMITH_CACHE=DIR",
      cause: thrown,
    });
  }
  const usual = HINTS_BY_ERRNO[errno] ?? "check the path, and the system's log";
  const { code = "file_unreadable", hint = usual } = options;
  return new ToolsmithError(code, message, { hint, cause: thrown });
}

/** Returns the errno name or number; `undefined` for network errors. */
function errnoOf(thrown: unknown): string | undefined {
  const { code, message } = (thrown ?? {}) as { [name: string]: unknown };
  if (typeof code === "string" && /^E[A-Z0-9]+$/.test(code)) {
    return /^E(?:ADDR|CONN|HOST|NET|PIPE|TIMEDOUT)/.test(code)
      ? undefined
      : code;
  }
  if (thrown instanceof Deno.errors.PermissionDenied) return "EACCES";
  if (/is not valid UTF-8$/.test(`${message}`)) return "EILSEQ";
  // The messages of fetch() end in an errno too.
  if (thrown instanceof TypeError) return undefined;
  return /\(os error (\d+)\)/.exec(`${message}`)?.[1];
}
