/**
 * The digest of a file that is being filled, in a thread of its own, which reads
 * the file itself: what the file is filled with takes this one.
 *
 * @module
 */
import { type Sha256, sha256 } from "./digest.ts";
import { abortable } from "./time.ts";

/** What {@linkcode arrivingSha256} takes. */
export interface ArrivingDigestOptions {
  /** Size of the file when all of it is there, in bytes. */
  size: number;
  /**
   * Begins to count the bytes that are there from the first on; ends when all
   * are.
   */
  arrivals: () => AsyncIterable<number>;
  /** Ends the computing when aborted. @default {undefined} */
  signal?: AbortSignal;
}

/** What a thread says of itself, and what it is given at first. */
type Answer = { sha256: Sha256 } | { failed: true };

const NAME = "toolsmith-sha256";
const CHUNK = 1024 * 1024;
/** A smaller file is hashed before a thread has started. */
const WORTH_BYTES = 64 * 1024 * 1024;

const scope = globalThis as unknown as Partial<Worker> & { name?: string };

/** Whether this is such a thread, in which no program must start. */
export const isDigestThread = scope.name === NAME &&
  typeof scope.postMessage === "function";

/** What a thread runs: this module, unless it was bundled into a program. */
let program = import.meta.url.endsWith("/arriving_digest.ts")
  ? import.meta.url
  : undefined;

if (isDigestThread) serve();

/**
 * Names a program that this module may have been bundled into, for threads to
 * run. Of any other bundle nobody knows what it does in a thread.
 *
 * @param url The program; it does nothing where {@linkcode isDigestThread}.
 */
export function runDigestThreads(url: string): void {
  program ??= url;
}

/**
 * Computes the SHA-256 of a file while it is filled from its start, from the
 * bytes on the disk. Small files, and all where no thread can be had, are done
 * in this one.
 *
 * Needs `--allow-read` for the file; the thread, `--allow-read` for the program.
 *
 * @param path The file.
 * @param options How far it is.
 * @returns The digest.
 * @throws What the counting throws, and what a file that cannot be read does;
 * the signal's reason.
 */
export async function arrivingSha256(
  path: string,
  { size, arrivals, signal }: ArrivingDigestOptions,
): Promise<Sha256> {
  if (size >= WORTH_BYTES && program && await mayLoad(program)) {
    try {
      return await inThread(program, path, { arrivals, signal });
    } catch {
      // Whatever it was, this thread meets it as well, and says so.
    }
  }
  return await sha256(arrivedChunks(path, arrivals(), signal));
}

/** Tells without asking the user. */
async function mayLoad(program: string): Promise<boolean> {
  const url = new URL(program);
  const { state } = await Deno.permissions.query(
    url.protocol === "file:"
      ? { name: "read", path: url }
      : { name: "import", host: url.host },
  );
  return state === "granted";
}

async function inThread(
  program: string,
  path: string,
  { arrivals, signal }: Omit<ArrivingDigestOptions, "size">,
): Promise<Sha256> {
  const thread = new Worker(program, { type: "module", name: NAME });
  const answer = Promise.withResolvers<Sha256>();
  thread.onmessage = ({ data }: MessageEvent<Answer>) =>
    "sha256" in data
      ? answer.resolve(data.sha256)
      : answer.reject(new Error("failed"));
  thread.onerror = (event) => {
    event.preventDefault();
    answer.reject(new Error(event.message));
  };
  try {
    thread.postMessage(path);
    const all = report(arrivals(), (count) => thread.postMessage(count));
    await Promise.race([all, answer.promise]);
    return await abortable(answer.promise, signal);
  } finally {
    thread.terminate();
  }
}

/** Reports counts, in steps that are worth a message, and the last. */
async function report(
  arrivals: AsyncIterable<number>,
  post: (count: number | null) => void,
) {
  let posted = 0;
  let last = 0;
  for await (const count of arrivals) {
    last = count;
    if (count - posted >= CHUNK) post(posted = count);
  }
  if (last > posted) post(last);
  post(null);
}

/** Is the thread: takes a path and then counts, and answers once. */
async function serve() {
  const messages: (string | number | null)[] = [];
  let wake = () => {};
  scope.onmessage = ({ data }) => {
    messages.push(data);
    wake();
  };
  const next = async () => {
    while (messages.length === 0) {
      await new Promise<void>((done) => wake = done);
    }
    return messages.shift()!;
  };
  async function* counts() {
    for (let count; (count = await next()) !== null;) yield count as number;
  }
  let answer: Answer;
  try {
    const path = await next() as string;
    answer = { sha256: await sha256(arrivedChunks(path, counts())) };
  } catch {
    answer = { failed: true };
  }
  scope.postMessage!(answer);
}

/** The bytes of a file as they arrive, all in the same buffer. */
async function* arrivedChunks(
  path: string,
  arrivals: AsyncIterable<number>,
  signal?: AbortSignal,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  using file = await Deno.open(path);
  const buffer = new Uint8Array(CHUNK);
  let position = 0;
  for await (const end of arrivals) {
    while (position < end) {
      signal?.throwIfAborted();
      const want = buffer.subarray(0, Math.min(end - position, CHUNK));
      // Nobody else waits for a turn in a thread of its own.
      const count = isDigestThread
        ? file.readSync(want)
        : await file.read(want);
      if (count === null) throw new Error(`${path} was cut short`);
      position += count;
      yield buffer.subarray(0, count);
    }
  }
}
