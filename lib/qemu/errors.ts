/**
 * How a machine fails, where callers have to tell it from other failures.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";

/** The machine ended, or broke off, while something was asked of it. */
export class VmDisconnectedError extends ToolsmithError {
  constructor() {
    super("guest_failed", "The machine broke off");
  }
}

/**
 * Tells whether a socket's other end is gone. One that QEMU has not accepted yet
 * when it ends is reset.
 *
 * @param error What connecting, reading or writing has thrown.
 */
export function isDisconnection(error: unknown): boolean {
  return error instanceof Deno.errors.BrokenPipe ||
    error instanceof Deno.errors.ConnectionRefused ||
    error instanceof Deno.errors.ConnectionReset;
}

/**
 * Connects to a socket of a machine.
 *
 * Needs `--allow-read`, `--allow-write` and `--allow-net=unix:…` for it.
 *
 * @param path The socket.
 * @returns The connection.
 * @throws {VmDisconnectedError} When nobody listens there.
 * @throws {Deno.errors.NotFound} When there is no such socket.
 */
export async function connectToMachine(path: string): Promise<Deno.UnixConn> {
  return await Deno.connect({ transport: "unix", path }).catch((error) => {
    throw isDisconnection(error) ? new VmDisconnectedError() : error;
  });
}

/** QEMU, or the agent, has answered that it will not do what was asked. */
export class RefusedError extends ToolsmithError {
  constructor(message: string) {
    super("guest_failed", message);
  }
}

/** Thrown where another accelerator may work; the message is QEMU's. */
export class AcceleratorError extends Error {}
