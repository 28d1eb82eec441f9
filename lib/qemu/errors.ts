/** Errors of the connection to a VM that callers handle separately. */
import { ToolsmithError } from "../errors.ts";

export class VmDisconnectedError extends ToolsmithError {
  constructor() {
    super("guest_failed", "Lost the connection to the VM");
  }
}

/**
 * Does an error mean that the socket's peer is gone? A connection that QEMU has not
 * accepted before it ends is reset.
 */
export function isDisconnection(error: unknown): boolean {
  return error instanceof Deno.errors.BrokenPipe ||
    error instanceof Deno.errors.ConnectionRefused ||
    error instanceof Deno.errors.ConnectionReset;
}

/**
 * Connects to a socket in a VM's directory. Throws {@linkcode VmDisconnectedError} when
 * nobody listens there, and `Deno.errors.NotFound` when there is no such socket.
 */
export async function connectToVmSocket(path: string): Promise<Deno.UnixConn> {
  return await Deno.connect({ transport: "unix", path }).catch((error) => {
    throw isDisconnection(error) ? new VmDisconnectedError() : error;
  });
}

export class CommandRefusedError extends ToolsmithError {
  constructor(message: string) {
    super("guest_failed", message);
  }
}

/** The accelerator failed, but another one may work; the message is QEMU's. */
export class AcceleratorError extends Error {}
