/**
 * Counts what is read from files: a bound on work that no host is too slow for.
 *
 * @module
 */
import { replace } from "./replace.ts";

/** What has been read so far. Disposing ends the count. */
export interface FileReads extends Disposable {
  /** Calls that read something. */
  calls: number;
  /** How many bytes they got. */
  bytes: number;
}

/** Counts what this process reads from files that it has opened. */
export function countReads(): FileReads {
  const { read } = Deno.FsFile.prototype;
  const counted = { calls: 0, bytes: 0 };
  const system = replace(Deno.FsFile.prototype, {
    async read(this: Deno.FsFile, into: Uint8Array) {
      const bytes = await read.call(this, into);
      counted.calls++;
      counted.bytes += bytes ?? 0;
      return bytes;
    },
  });
  return Object.assign(counted, {
    [Symbol.dispose]: () => system[Symbol.dispose](),
  });
}
