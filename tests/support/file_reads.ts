/** Counts file reads, to bound work independently of the host's speed. */
import { replaceMethod } from "./replace_method.ts";

/** The reads so far; disposing stops counting. */
export interface FileReads extends Disposable {
  /** Number of read calls. */
  calls: number;
  /** Bytes read. */
  bytes: number;
}

/** Counts reads of files that this process opens. */
export function countReads(): FileReads {
  const { read } = Deno.FsFile.prototype;
  const counted = { calls: 0, bytes: 0 };
  const system = replaceMethod(Deno.FsFile.prototype, {
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
