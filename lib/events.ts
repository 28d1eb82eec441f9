/**
 * What Toolsmith reports while it works: a typed union of events. Nothing here
 * prints; the command line renders them for a person or as JSON Lines.
 *
 * @module
 */

/** What every event carries. */
export interface EventBase<Type extends string> {
  /** Which event it is. */
  type: Type;
  /** When it happened, as an ISO 8601 time in UTC. */
  timestamp: string;
}

/** What every event about one image carries. */
export interface ImageEvent<Type extends string> extends EventBase<Type> {
  /** The manifest's `image.name`. */
  image: string;
}

/** Another process holds the lock of this image; this one waits. */
export interface LockWaitEvent extends ImageEvent<"lock_wait"> {
  /** The lock's file. */
  path: string;
}

/** The image is in the cache and still the verified one. */
export interface CacheHitEvent extends ImageEvent<"cache_hit"> {
  /** The image's path in the cache. */
  path: string;
  /** `sha256:` and the digest in hex. */
  digest: string;
}

/** An entry of the cache is not what was verified; it is replaced. */
export interface CacheCorruptEvent extends ImageEvent<"cache_corrupt"> {
  /** The entry's path. */
  path: string;
  /** What is wrong with it. */
  reason: string;
}

/** The registry's manifest was read and holds the expected layer. */
export interface ManifestResolvedEvent extends ImageEvent<"manifest_resolved"> {
  /** Where the image comes from. */
  source: string;
  /** The artifact manifest's digest. */
  digest: string;
  /** The title of the layer that is the image. */
  file: string;
  /** Size of the image, in bytes. */
  bytes: number;
}

/** A transfer begins. */
export interface DownloadStartEvent extends ImageEvent<"download_start"> {
  /** Where the image comes from. */
  source: string;
  /** Size of all that is transferred, in bytes; `null` if not known. */
  bytes: number | null;
  /** Bytes that an earlier transfer has left, and that are not asked for again. */
  resumed: number;
  /** How many connections there are at most. */
  connections: number;
}

/** The image does not come by ranges, but by `oras pull`, over one connection. */
export interface RangesUnavailableEvent
  extends ImageEvent<"ranges_unavailable"> {
  /** What stands in the way. */
  reason: string;
}

/** A mirror is given up; the next one, or the registry, goes on. */
export interface MirrorFailedEvent extends ImageEvent<"mirror_failed"> {
  /** The mirror's host. */
  mirror: string;
  /** What is wrong with it. */
  reason: string;
}

/** A transfer has come so far. */
export interface DownloadProgressEvent extends ImageEvent<"download_progress"> {
  /** Bytes that are there by now. */
  bytes: number;
  /** Size of the whole, in bytes; `null` if not known. */
  total: number | null;
}

/** A transfer is complete, and not yet verified. */
export interface DownloadEndEvent extends ImageEvent<"download_end"> {
  /** Where the image came from. */
  source: string;
  /** Bytes that were transferred. */
  bytes: number;
  /** Time it took, in milliseconds. */
  elapsedMs: number;
}

/** A transient failure; the same is tried again after a pause. */
export interface RetryEvent extends ImageEvent<"retry"> {
  /** The failure's code. */
  code: string;
  /** The failure's message. */
  message: string;
  /** Which attempt comes next; the first was 1. */
  attempt: number;
  /** How many attempts there are in all. */
  attempts: number;
  /** Pause before the next attempt, in milliseconds. */
  delayMs: number;
}

/** The bytes have the expected digest. */
export interface ChecksumVerifiedEvent extends ImageEvent<"checksum_verified"> {
  /** `sha256:` and the digest in hex. */
  digest: string;
  /** Size of the image, in bytes. */
  bytes: number;
}

/** The image is at its place in the cache. */
export interface CachePlacedEvent extends ImageEvent<"cache_placed"> {
  /** The image's path in the cache. */
  path: string;
  /** `sha256:` and the digest in hex. */
  digest: string;
  /** Size of the image, in bytes. */
  bytes: number;
}

/** A file that is about to be published was looked at. */
export interface ImageInspectedEvent extends ImageEvent<"image_inspected"> {
  /** The file's path. */
  path: string;
  /** Size of the file, in bytes. */
  bytes: number;
  /** Size of the disk that the guest sees, in bytes. */
  virtualSize: number;
  /** Whether the image's clusters are compressed, as far as they were seen. */
  compressed: boolean;
  /** How much of the file is holes, in bytes; `null` where it is not known. */
  sparseBytes: number | null;
  /** The part of the file that compression would save, from 0 to 1. */
  savings: number;
}

/** The digest of a file has been computed so far. */
export interface ChecksumProgressEvent extends ImageEvent<"checksum_progress"> {
  /** Bytes that were read by now. */
  bytes: number;
  /** Size of the whole, in bytes. */
  total: number;
}

/** The push to the registry begins. */
export interface PublishStartEvent extends ImageEvent<"publish_start"> {
  /** Where it is published, as `registry/repository:tag`. */
  reference: string;
  /** The title of the layer that is the image. */
  file: string;
  /** Size of all that is pushed, in bytes. */
  bytes: number;
  /** Digest of the image: `sha256:` and hex. */
  digest: string;
}

/** The push to the registry is done. */
export interface PushEndEvent extends ImageEvent<"push_end"> {
  /** Where it was published. */
  reference: string;
  /** The artifact manifest's digest. */
  digest: string;
  /** Size of all that was pushed, in bytes. */
  bytes: number;
  /** Time it took, in milliseconds. */
  elapsedMs: number;
}

/** The registry was asked for what was published. */
export interface PublishPollEvent extends ImageEvent<"publish_poll"> {
  /** What it was asked for. */
  reference: string;
  /** Which attempt this was, from 1. */
  attempt: number;
  /** How many attempts there are in all. */
  attempts: number;
  /** Whether it serves what was pushed. */
  outcome: "served" | "waiting";
  /** Why it does not yet: an error's message. */
  message?: string;
  /** Pause before the next attempt, in milliseconds; 0 for the last. */
  delayMs: number;
}

/** The registry serves what was pushed. */
export interface PublishVerifiedEvent extends ImageEvent<"publish_verified"> {
  /** Where it was published. */
  reference: string;
  /** The artifact manifest's digest. */
  digest: string;
  /** What was compared: digests alone, or the bytes too. */
  verify: "manifest" | "pull";
}

/** QEMU is started. */
export interface VmBootEvent extends EventBase<"vm_boot"> {
  /** The image's path. */
  image: string;
  /** Whether a snapshot is restored. */
  how: "boot" | "restore";
  /** What runs the machine. */
  backend: "qemu";
  /** Its version. */
  version: string;
  /** How the guest's instructions are run. */
  accelerator: "kvm" | "hvf" | "tcg";
  /** Memory of the machine, in MiB. */
  memory: number;
  /** Processors of the machine. */
  cpus: number;
}

/** The guest answers, and its directories are mounted. */
export interface BootReadyEvent extends EventBase<"boot_ready"> {
  /** The image's path. */
  image: string;
  /** How the machine came to be ready. */
  how: "booted" | "restored";
  /**
   * The agent that answered after a boot: `toolsmith` for the one that the seed
   * brought, else its name and version.
   */
  agent?: string;
  /** Time of each phase, in milliseconds. */
  phases: {
    /** Until QEMU answered. */
    start: number;
    /** From then until its agent answered; a restored guest's does so in `attach`. */
    guest: number;
    /** From then until the machine was saved and went on; 0 if it was not. */
    save: number;
    /** From then until directories and network were attached. */
    attach: number;
  };
  /** Time of all phases, in milliseconds. */
  elapsedMs: number;
}

/** A snapshot of the machine was saved when it was ready; the next start restores it. */
export interface StateSavedEvent extends EventBase<"state_saved"> {
  /** The snapshot's file. */
  path: string;
  /** Size of all its files, in bytes. */
  bytes: number;
  /** How long the machine was paused for it, in milliseconds. */
  stoodMs: number;
}

/** A command is sent to the guest. Its arguments, which may be secret, are not reported. */
export interface CommandDispatchEvent extends EventBase<"command_dispatch"> {
  /** Numbers the commands of this process, from 1. */
  id: number;
  /** The command's name or path. */
  command: string;
  /** Where it runs. */
  backend: "qemu" | "host";
}

/** A command has ended. */
export interface CommandEndEvent extends EventBase<"command_end"> {
  /** The number it was dispatched with. */
  id: number;
  /** Its exit status; 128 plus the number for a signal. */
  code: number;
  /** The signal that ended it, or `null`. */
  signal: string | null;
  /** Bytes it wrote to standard output; not known on the host. */
  stdoutBytes?: number;
  /** Bytes it wrote to standard error; not known on the host. */
  stderrBytes?: number;
  /** Time it took, in milliseconds. */
  elapsedMs: number;
}

/** The directory of an export did not exist, and was made. */
export interface ExportCreatedEvent extends EventBase<"export_created"> {
  /** Its absolute path. */
  path: string;
}

/** The machine has ended. */
export interface ShutdownEvent extends EventBase<"shutdown"> {
  /** By the guest itself, by a stop of QEMU, or by force. */
  how: "powered_down" | "stopped" | "killed";
  /** Time it took, in milliseconds. */
  elapsedMs: number;
}

/** Something that is not a failure, and that a person should know. */
export interface WarningEvent extends EventBase<"warning"> {
  /** What it is. */
  message: string;
}

/** Everything that a caller may be notified of. */
export type ToolsmithEvent =
  | LockWaitEvent
  | CacheHitEvent
  | CacheCorruptEvent
  | ManifestResolvedEvent
  | DownloadStartEvent
  | RangesUnavailableEvent
  | MirrorFailedEvent
  | DownloadProgressEvent
  | DownloadEndEvent
  | RetryEvent
  | ChecksumVerifiedEvent
  | CachePlacedEvent
  | ImageInspectedEvent
  | ChecksumProgressEvent
  | PublishStartEvent
  | PushEndEvent
  | PublishPollEvent
  | PublishVerifiedEvent
  | VmBootEvent
  | BootReadyEvent
  | StateSavedEvent
  | CommandDispatchEvent
  | CommandEndEvent
  | ExportCreatedEvent
  | ShutdownEvent
  | WarningEvent;

/** Takes events; a caller's `onEvent`. It must not throw. */
export type OnEvent = (event: ToolsmithEvent) => void;

/** An event as it is written at its source: the time is added on the way. */
export type Untimed<E> = E extends unknown ? Omit<E, "timestamp"> : never;

let commands = 0;

/**
 * The number of the next command of this process.
 *
 * @returns From 1.
 */
export function nextCommandId(): number {
  return ++commands;
}

/** Sends one event. */
export type Emit = (event: Untimed<ToolsmithEvent>) => void;

/**
 * Makes the function that adds the time to events and passes them on.
 *
 * @param onEvent The caller's function, or `undefined` to drop all events.
 * @param now The clock, in milliseconds since the epoch.
 * @returns The function that the rest of the code sends events with.
 */
export function emitter(
  onEvent: OnEvent | undefined,
  now: () => number = Date.now,
): Emit {
  return ({ type, ...rest }) => {
    const timestamp = new Date(now()).toISOString();
    onEvent?.({ type, timestamp, ...rest } as ToolsmithEvent);
  };
}
