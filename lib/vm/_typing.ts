/**
 * What is typed into a machine's console.
 *
 * @module
 */
import type { Machine } from "../qemu/machine.ts";

/** Types what comes into the console of one machine. */
export interface Typing {
  /** Was anything typed? */
  used(): boolean;
  /** Types no more, and leaves the input to another machine. */
  leave(): Promise<void>;
  /** Types no more, and takes no more input. */
  stop(): Promise<void>;
}

/**
 * Types what comes into the console, for as long as the machine is there.
 *
 * @param input What comes, if anything does.
 * @param machine The machine.
 * @returns What ends it.
 */
export function relay(
  input: ReadableStream<Uint8Array> | undefined,
  machine: Machine,
): Typing {
  const reader = input?.getReader();
  let used = false;
  const done = (async () => {
    while (reader) {
      const { value } = await reader.read();
      if (value === undefined) return;
      used = true;
      await machine.type(value);
    }
  })().catch(() => {});
  const leave = async () => {
    // What is read from now on is the next reader's.
    reader?.releaseLock();
    await done;
  };
  return {
    used: () => used,
    leave,
    async stop() {
      await reader?.cancel().catch(() => {});
      await leave();
    },
  };
}
