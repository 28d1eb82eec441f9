/**
 * The directory of a running VM: its file names, creation and removal.
 *
 *     <TMPDIR>/toolsmith-<id>/     0700
 */
import { join, resolve } from "../path.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { type Sha256, sha256OfText } from "../system/digest.ts";
import {
  makeTemporaryDir,
  readTextWithFileIdentity,
  removeTree,
  replaceFileAtomically,
} from "../system/files.ts";

export const VM_FILES = {
  qmp: "qmp",
  agent: "agent",
  console: "console",
  /** cloud-init seed disk, which installs Toolsmith's agent. */
  seed: "seed",
  /** Socket that QEMU migrates the VM's state to while it is saved. */
  migration: "migration",
  /** Socket of the guest's network, until QEMU has connected. */
  network: "network",
  /** Lock for a connection to QEMU or the agent. */
  lock: "lock",
  /** Lock for plugging and unplugging ports. */
  exclusive: "alone",
  /** Lock for syncing copied exports. */
  syncLock: "back",
  /** Secret whose digest is in the detached VM's record. */
  token: "token",
} as const;

/** Files of a command's ports: the port name and the kind of file. */
const PORT_FILE_PATTERN = /^(toolsmith\.\w{8})\.(?:out|err|in|lock)$/;

/** Port name of the first command; every VM boots with these ports. */
export const FIRST_COMMAND_PORT_NAME = "toolsmith.prepared";

export function newPortName(): string {
  return `toolsmith.${crypto.randomUUID().slice(0, 8)}`;
}

/** Name of a file of a command's ports in the VM's directory. */
export function portFileName(
  name: string,
  kind: "out" | "err" | "in" | "lock",
): string {
  return `${name}.${kind}`;
}

/** Returns the port name in a file name; `undefined` for other files. */
export function portNameOfFile(file: string): string | undefined {
  return PORT_FILE_PATTERN.exec(file)?.[1];
}

/**
 * Returns the directories in which VM directories are made: the usual one, and one with
 * a short path.
 */
export function vmDirParents(env: Environment): [string, string] {
  return [resolve(env.get("TMPDIR") || "/tmp"), "/tmp"];
}

/** Makes a private VM directory, with a path short enough for sockets in it. */
export async function makeVmDir(
  env: Environment = processEnvironment,
): Promise<string> {
  const [usual, short] = vmDirParents(env);
  // A socket's name has at most 103 bytes on macOS, 107 on Linux.
  const parent = new TextEncoder().encode(usual).length > 60 ? short : usual;
  return await makeTemporaryDir("toolsmith-", parent);
}

/**
 * Writes a random token into a VM's directory and returns its digest, for the detached
 * VM's record. Nobody who cannot read the directory can guess it.
 */
export async function writeVmDirToken(dir: string): Promise<string> {
  const path = join(dir, VM_FILES.token);
  await replaceFileAtomically(path, crypto.randomUUID(), { mode: 0o600 });
  return (await vmDirTokenDigest(dir))!;
}

/** Includes the file's identity, so that a copied token has another digest. */
async function vmDirTokenDigest(dir: string): Promise<Sha256 | undefined> {
  const token = await readTextWithFileIdentity(join(dir, VM_FILES.token), 36);
  return token === undefined ? undefined : await sha256OfText(token);
}

/**
 * Checks that a directory has the token of a record. Without it, a forged record could
 * name any directory.
 */
export async function hasVmDirToken(
  dir: string,
  token: string | undefined,
): Promise<boolean> {
  const found = await vmDirTokenDigest(dir).catch(() => undefined);
  return found !== undefined && found === token;
}

export async function removeVmDir(dir: string): Promise<void> {
  const token = join(dir, VM_FILES.token);
  // Removed last: after a kill, the rest can still be identified and removed.
  for await (const { name } of Deno.readDir(dir)) {
    const path = join(dir, name);
    if (path !== token) await removeTree(path);
  }
  await removeTree(dir);
}
