/**
 * The events that Toolsmith emits while it works. The command line prints them as
 * text or as JSON Lines.
 */

/** Fields of every event about an image. */
export interface ImageFields {
  /** The manifest's `image.name`. */
  image: string;
}

/** How much of an image an update downloads. */
export interface UpdateSize {
  /** The older image's version: its tag, file name or digest. */
  from: string;
  /** Number of bytes to download. */
  bytes: number;
  /** Size of the image, in bytes. */
  total: number;
}

/** The fields of each type of event, besides those of every {@linkcode ToolsmithEvent}. */
export interface EventFields {
  /** Another process holds the image's lock; this one waits. */
  lock_wait: ImageFields & {
    /** The lock file. */
    path: string;
  };
  /** The verified image is in the cache. */
  cache_hit: ImageFields & {
    /** The image's path in the cache. */
    path: string;
    /** `sha256:` and the digest in hex. */
    digest: string;
  };
  /** A cached image differs from what was verified and is replaced. */
  cache_corrupt: ImageFields & {
    /** The cached image's path. */
    path: string;
    /** What is wrong with the cached image. */
    reason: string;
  };
  /** The registry's manifest has the expected image layer. */
  manifest_resolved: ImageFields & {
    /** The image's source. */
    source: string;
    /** The artifact manifest's digest. */
    digest: string;
    /** The title of the image layer. */
    file: string;
    /** Size of the image, in bytes. */
    bytes: number;
  };
  /** The artifact has a signature that satisfies the manifest's rule. */
  signature_verified: ImageFields & {
    /** The artifact manifest's digest. */
    digest: string;
    /** The identity that signed, or the digest of the key. */
    signer: string;
  };
  /** A download starts. */
  download_start: ImageFields & {
    /** The image's source. */
    source: string;
    /** Size of the download, in bytes; `null` if unknown. */
    bytes: number | null;
    /** Bytes of an earlier partial download that are kept. */
    resumed: number;
    /** Maximum number of connections. */
    connections: number;
  };
  /** Range requests are not possible; falling back to `oras pull` over one connection. */
  ranges_unavailable: ImageFields & {
    /** Why range requests are not possible. */
    reason: string;
  };
  /** A mirror failed; the download continues from the next one, or the registry. */
  mirror_failed: ImageFields & {
    /** The mirror's host. */
    mirror: string;
    /** Why the mirror failed. */
    reason: string;
  };
  /** What an older image holds, too, was copied from it; the rest is downloaded. */
  update_start: ImageFields & UpdateSize;
  /** An older image exists, but the whole image is downloaded. */
  update_declined: ImageFields & {
    /** Why nothing is copied from the older image. */
    reason: string;
  };
  /** Progress of a download. */
  download_progress: ImageFields & {
    /** Bytes downloaded so far, resumed ones included. */
    bytes: number;
    /** Total size, in bytes; `null` if unknown. */
    total: number | null;
  };
  /** A download is complete, but not yet verified. */
  download_end: ImageFields & {
    /** The image's source. */
    source: string;
    /** Bytes transferred. */
    bytes: number;
    /** Duration, in milliseconds. */
    elapsedMs: number;
  };
  /** A transient failure will be retried after a pause. */
  retry: ImageFields & {
    /** The error's code. */
    code: string;
    /** The error's message. */
    message: string;
    /** Number of the next attempt; the first was 1. */
    attempt: number;
    /** Maximum number of attempts. */
    attempts: number;
    /** Pause before the next attempt, in milliseconds. */
    delayMs: number;
  };
  /** The downloaded image has the expected digest. */
  checksum_verified: ImageFields & {
    /** `sha256:` and the digest in hex. */
    digest: string;
    /** Size of the image, in bytes. */
    bytes: number;
  };
  /** The image was moved into the cache. */
  cache_placed: ImageFields & {
    /** The image's path in the cache. */
    path: string;
    /** `sha256:` and the digest in hex. */
    digest: string;
    /** Size of the image, in bytes. */
    bytes: number;
  };
  /** The image file to publish was inspected. */
  image_inspected: ImageFields & {
    /** The file's path. */
    path: string;
    /** Size of the file, in bytes. */
    bytes: number;
    /** Virtual disk size, in bytes. */
    virtualSize: number;
    /** Whether most sampled clusters are compressed. */
    compressed: boolean;
    /** Bytes of the file that are holes; `null` if unknown. */
    sparseBytes: number | null;
  };
  /** Progress of hashing a file. */
  checksum_progress: ImageFields & {
    /** Bytes hashed so far. */
    bytes: number;
    /** Total size, in bytes. */
    total: number;
  };
  /** `qemu-img` starts to compress the image to publish. */
  compress_start: {
    /** The image's path. */
    path: string;
  };
  /** What hosts that have the version `from` will download, and the image's size. */
  update_predicted: ImageFields & UpdateSize;
  /** The push to the registry starts. */
  publish_start: ImageFields & {
    /** The target, as `registry/repository:tag`. */
    reference: string;
    /** The title of the image layer. */
    file: string;
    /** Size of all files to push, in bytes. */
    bytes: number;
    /** The image's digest: `sha256:` and hex. */
    digest: string;
  };
  /** The push to the registry is complete. */
  push_end: ImageFields & {
    /** The reference that was pushed. */
    reference: string;
    /** The artifact manifest's digest. */
    digest: string;
    /** Size of all pushed files, in bytes. */
    bytes: number;
    /** Duration, in milliseconds. */
    elapsedMs: number;
  };
  /** The registry was polled for the published artifact. */
  publish_poll: ImageFields & {
    /** The reference that was requested. */
    reference: string;
    /** Number of this attempt, from 1. */
    attempt: number;
    /** Maximum number of attempts. */
    attempts: number;
    /** Whether the registry serves the pushed artifact. */
    outcome: "served" | "waiting";
    /** The error's message while it does not. */
    message?: string;
    /** Pause before the next attempt, in milliseconds; 0 for the last. */
    delayMs: number;
  };
  /** The registry serves the pushed artifact. */
  publish_verified: ImageFields & {
    /** The reference that was pushed. */
    reference: string;
    /** The artifact manifest's digest. */
    digest: string;
    /** What was compared: the digests, or the pulled image too. */
    verify: "manifest" | "pull";
  };
  /** QEMU starts. */
  vm_boot: {
    /** The image's path. */
    image: string;
    /** Whether the VM boots or restores a snapshot. */
    how: "boot" | "restore";
    /** What runs the VM. */
    backend: "qemu";
    /** QEMU's version. */
    version: string;
    /** Hardware acceleration, or `tcg` for emulation. */
    accelerator: "kvm" | "hvf" | "tcg";
    /** The VM's memory, in MiB. */
    memory: number;
    /** The VM's virtual processors. */
    cpus: number;
  };
  /** The guest is ready and its directories are mounted. */
  boot_ready: {
    /** The image's path. */
    image: string;
    /** Whether the VM booted or was restored. */
    how: "booted" | "restored";
    /**
     * The guest agent that answered after a boot: `toolsmith` for the one from the seed
     * disk, else its name and version.
     */
    agent?: string;
    /** Duration of each phase, in milliseconds. */
    phases: {
      /** Until QEMU answers. */
      start: number;
      /** Until the guest agent answers; for a restored VM part of `attach`. */
      guest: number;
      /** Until the snapshot is saved and the VM resumed; 0 without a snapshot. */
      save: number;
      /** Until directories and network are attached. */
      attach: number;
    };
    /** Duration of all phases, in milliseconds. */
    elapsedMs: number;
  };
  /** A snapshot of the ready VM was saved; the next start restores it. */
  state_saved: {
    /** The snapshot's file. */
    path: string;
    /** Size of all files of the snapshot, in bytes. */
    bytes: number;
    /** How long the VM was paused for the snapshot, in milliseconds. */
    stoodMs: number;
  };
  /** A command is started. Its arguments may be secret and are not reported. */
  command_dispatch: {
    /** Number of the command in this process, from 1. */
    id: number;
    /** The command's name or path. */
    command: string;
    /** Where the command runs: in the VM or on the host. */
    backend: "qemu" | "host";
  };
  /** A command has ended. */
  command_end: {
    /** The `id` of the command_dispatch event. */
    id: number;
    /** Exit status; 128 plus the number for a signal. */
    code: number;
    /** The signal that ended the command, or `null`. */
    signal: string | null;
    /** Bytes written to standard output; absent on the host. */
    stdoutBytes?: number;
    /** Bytes written to standard error; absent on the host. */
    stderrBytes?: number;
    /** Duration, in milliseconds. */
    elapsedMs: number;
  };
  /** The directory of an export was created. */
  export_created: {
    /** The directory's absolute path. */
    path: string;
  };
  /** A guest's network allowed or refused what the guest wanted to reach. */
  egress: {
    /** Whether the guest may reach it; it may still not answer. */
    allowed: boolean;
    /** Name or address; `*` sums up what was too much to report. */
    host: string;
    /** The port, `null` without one, as for a name that is looked up. */
    port: number | null;
    /** The rule that allows it, or why it is refused. */
    reason: string;
  };
  /** The VM has ended. */
  shutdown: {
    /** Powered down by the guest, stopped by QEMU, or killed. */
    how: "powered_down" | "stopped" | "killed";
    /** Duration, in milliseconds. */
    elapsedMs: number;
  };
  /** A problem that does not stop the work. */
  warning: {
    /** The warning's text. */
    message: string;
  };
}

/** Every event that Toolsmith emits; `ToolsmithEvent<"retry">` is those of one type. */
export type ToolsmithEvent<
  Type extends keyof EventFields = keyof EventFields,
> = {
  [T in Type]: EventFields[T] & {
    /** The event's type. */
    type: T;
    /** ISO 8601 time in UTC. */
    timestamp: string;
  };
}[Type];

/** A listener for events. It must not throw. */
export type OnEvent = (event: ToolsmithEvent) => void;

/** An event before {@linkcode createEmitter} adds its timestamp. */
export type EventWithoutTimestamp<E> = E extends unknown ? Omit<E, "timestamp">
  : never;

let lastCommandId = 0;

/** Returns a new command number, unique in this process: 1, 2, 3, … */
export function nextCommandId(): number {
  return ++lastCommandId;
}

export type Emit = (event: EventWithoutTimestamp<ToolsmithEvent>) => void;

/** Creates a function that adds the timestamp to events and passes them on. */
export function createEmitter(onEvent: OnEvent | undefined): Emit {
  return ({ type, ...rest }) => {
    const timestamp = new Date().toISOString();
    onEvent?.({ type, timestamp, ...rest } as ToolsmithEvent);
  };
}
