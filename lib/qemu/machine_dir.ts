/**
 * The directory of a running machine: every name in it, how it is made and how
 * it is removed.
 *
 *     <TMPDIR>/toolsmith-<id>/     0700
 *
 * @module
 */
import { join, resolve } from "../path.ts";
import { terminalId } from "./devices.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { type Sha256, sha256OfText } from "../system/digest.ts";
import {
  makeTemporaryDir,
  readOriginal,
  removeTree,
  replaceFile,
} from "../system/files.ts";

/** Names of the files in a machine's directory. */
export const MACHINE_FILES = {
  /** QEMU's monitor. */
  qmp: "qmp",
  /** The guest agent. */
  agent: "agent",
  /** The serial console. */
  console: "console",
  /** The disk that brings an agent to a guest without one. */
  seed: "seed",
  /** Where a snapshot's memory goes through while it is saved. */
  migration: "migration",
  /** Held by whoever talks to QEMU or the agent. */
  lock: "lock",
  /** Held by whoever plugs the ports of a command. */
  exclusive: "alone",
  /** Held by whoever brings an export back from a guest that has a copy of it. */
  back: "back",
  /** What proves to be the directory that a record of a machine means. */
  token: "token",
} as const;

/** Files of a command's ports: the name that `portName` makes, and what it is. */
const PORT = /^(toolsmith\.\w{8})\.(?:out|err|in|lock)$/;

/** The name of the ports that each machine has from its start, for one command. */
export const FIRST_PORTS = "toolsmith.prepared";

/**
 * A new name for the ports of one command.
 *
 * @returns What no other command has.
 */
export function portName(): string {
  return `toolsmith.${crypto.randomUUID().slice(0, 8)}`;
}

/**
 * A file of a command's ports in the machine's directory.
 *
 * @param name What `portName` made.
 * @param kind The socket of a stream, or the lock of the process that uses it.
 */
export function portFile(
  name: string,
  kind: "out" | "err" | "in" | "lock",
): string {
  return `${name}.${kind}`;
}

/**
 * The ports that a file in a machine's directory belongs to.
 *
 * @param file The file's name.
 * @returns Their name, or `undefined` for any other file.
 */
export function portNameOf(file: string): string | undefined {
  return PORT.exec(file)?.[1];
}

/**
 * The lock of the process that uses a terminal.
 *
 * @param index Which one, from 0.
 */
export function terminalLock(index: number): string {
  return `${terminalId(index)}.lock`;
}

/**
 * Where directories of machines are made.
 *
 * @param env Read for `TMPDIR`.
 * @returns The usual place, and one with a short path.
 */
export function machineParents(env: Environment): [string, string] {
  return [resolve(env.get("TMPDIR") || "/tmp"), "/tmp"];
}

/**
 * Makes the directory of a machine: private, and with a path so short that
 * sockets in it can be named.
 *
 * Needs `--allow-write` for the temporary directory.
 *
 * @param env Read for `TMPDIR`.
 * @returns Its absolute path. Whoever made it removes it.
 * @throws {ToolsmithError} `usage` when none can be made there, `disk_full`.
 */
export async function makeMachineDir(
  env: Environment = processEnvironment,
): Promise<string> {
  const [usual, short] = machineParents(env);
  // A socket's name has at most 103 bytes on macOS, 107 on Linux.
  const parent = new TextEncoder().encode(usual).length > 60 ? short : usual;
  const dir = await makeTemporaryDir("toolsmith-", parent);
  await Deno.chmod(dir, 0o700);
  return dir;
}

/**
 * Puts a token into the directory of a machine, for a record of the machine to
 * hold its digest.
 *
 * Needs `--allow-read` and `--allow-write` for the directory.
 *
 * @param dir The directory.
 * @returns The digest: what nobody can guess who cannot read there.
 */
export async function markMachineDir(dir: string): Promise<string> {
  const path = join(dir, MACHINE_FILES.token);
  await replaceFile(path, crypto.randomUUID(), { mode: 0o600 });
  return (await tokenOf(dir))!;
}

/** A workspace may come with a record and a token: it is another token then. */
async function tokenOf(dir: string): Promise<Sha256 | undefined> {
  const token = await readOriginal(join(dir, MACHINE_FILES.token), 36);
  return token === undefined ? undefined : await sha256OfText(token);
}

/**
 * Checks whether a directory is that of a machine: its path may come from a file
 * that somebody else wrote.
 *
 * Needs `--allow-read` for it.
 *
 * @param dir The directory.
 * @param token What {@linkcode markMachineDir} returned.
 */
export async function isMachineDir(
  dir: string,
  token: string | undefined,
): Promise<boolean> {
  const found = await tokenOf(dir).catch(() => undefined);
  return found !== undefined && found === token;
}

/**
 * Removes the directory of a machine that has ended.
 *
 * Needs `--allow-read` and `--allow-write` for it.
 *
 * @param dir The directory: see {@linkcode isMachineDir}.
 */
export async function removeMachineDir(dir: string): Promise<void> {
  const proof = join(dir, MACHINE_FILES.token);
  // The proof goes last: what is left after a kill can still be removed.
  for await (const { name } of Deno.readDir(dir)) {
    const path = join(dir, name);
    if (path !== proof) await removeTree(path);
  }
  await removeTree(dir);
}
