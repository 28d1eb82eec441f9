import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  type DigestEngineName,
  readFileChunks,
  sha256OfChunks,
} from "../../lib/system/digest.ts";
import {
  sha256OfGrowingFile as hashArrivingFile,
} from "../../lib/transfer/file_digest.ts";
import { countStdDigestBytes, writeRandom } from "../support/digests.ts";
import { temporaryDir } from "../support/directory.ts";
import { replaceMethod } from "../support/replace_method.ts";
import { runScript } from "../support/script.ts";

const MIB = 1024 * 1024;
const SIZE = 3 * MIB + 1;
const ENGINES = ["std", "runtime"] as const;

/** Hashes a file of which these counts of bytes arrive. */
function sha256OfGrowingFile(
  path: string,
  { size, watchByteCount, engine, signal = new AbortController().signal }: {
    size: number;
    watchByteCount: () => AsyncGenerator<number>;
    engine?: DigestEngineName;
    signal?: AbortSignal;
  },
) {
  const file = { path, size, engine, watchPrefixLength: watchByteCount };
  return hashArrivingFile(file, signal);
}

async function* counts(...all: number[]) {
  yield* all;
}

/** Records started workers and their messages until disposed. */
function watchWorkers() {
  const sent: unknown[] = [];
  let started = 0;
  const replaced = replaceMethod(globalThis, {
    Worker: class extends Worker {
      constructor(...args: ConstructorParameters<typeof Worker>) {
        super(...args);
        started++;
      }
      override postMessage(message: unknown) {
        sent.push(message);
        super.postMessage(message);
      }
      override terminate() {
        sent.push("terminated");
        super.terminate();
      }
    },
  });
  return {
    sent,
    started: () => started,
    [Symbol.dispose]: () => replaced[Symbol.dispose](),
  };
}

Deno.test("sha256OfGrowingFile() computes the digest of the whole file, for any sequence of byte counts", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  for (const size of [1, MIB, SIZE]) {
    await writeRandom(path, size);
    const whole = await sha256OfChunks(readFileChunks(path));
    const steps = [1, 5, size - 1, size].filter((at) => at > 0 && at <= size);
    for (const all of [steps, [size]]) {
      for (const engine of ENGINES) {
        const watchByteCount = () => counts(...all);
        assertEquals(
          await sha256OfGrowingFile(path, {
            size,
            watchByteCount,
            engine,
          }),
          whole,
        );
      }
    }
  }
});

Deno.test("sha256OfGrowingFile() throws when the file is truncated or missing", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  for (const engine of ENGINES) {
    await writeRandom(path, SIZE - 1);
    const watchByteCount = () => counts(SIZE);
    const compute = () =>
      sha256OfGrowingFile(path, {
        size: SIZE,
        watchByteCount,
        engine,
      });
    await assertRejects(compute, Error, "was truncated");
    await Deno.remove(path);
    await assertRejects(compute, Deno.errors.NotFound);
  }
});

Deno.test("sha256OfGrowingFile() stops when its signal is aborted", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  await writeRandom(path, SIZE);
  for (const engine of ENGINES) {
    const stop = new AbortController();
    const watchByteCount = async function* () {
      stop.abort(new Error("enough"));
      yield SIZE;
    };
    const { signal } = stop;
    const compute = () =>
      sha256OfGrowingFile(path, {
        size: SIZE,
        watchByteCount,
        engine,
        signal,
      });
    await assertRejects(compute, Error, "enough");
  }
});

Deno.test("sha256OfGrowingFile() does no synchronous reads in the main thread", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  await writeRandom(path, SIZE);
  using _system = replaceMethod(Deno.FsFile.prototype, {
    readSync() {
      throw new Error("synchronous read in the main thread");
    },
  });
  for (const engine of ENGINES) {
    const watchByteCount = () => counts(SIZE);
    await sha256OfGrowingFile(path, {
      size: SIZE,
      watchByteCount,
      engine,
    });
  }
});

Deno.test("sha256OfGrowingFile() starts a worker thread for the runtime engine only", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  await writeRandom(path, SIZE);
  const watchByteCount = () => counts(SIZE);
  using workers = watchWorkers();
  using std = countStdDigestBytes();
  await sha256OfGrowingFile(path, { size: SIZE, watchByteCount });
  assertEquals([workers.started(), std.bytes], [0, SIZE]);
  await sha256OfGrowingFile(path, {
    size: SIZE,
    watchByteCount,
    engine: "runtime",
  });
  assertEquals([workers.started(), std.bytes], [1, SIZE]);
});

Deno.test("sha256OfGrowingFile() falls back to the main thread when no worker can start", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  await writeRandom(path, SIZE);
  const whole = await sha256OfChunks(readFileChunks(path));
  using _system = replaceMethod(globalThis, {
    Worker: class {
      constructor() {
        throw new Error("no threads");
      }
    },
  });
  const watchByteCount = () => counts(SIZE);
  const options = { size: SIZE, watchByteCount, engine: "runtime" as const };
  assertEquals(await sha256OfGrowingFile(path, options), whole);
});

Deno.test("sha256OfGrowingFile() sends its worker a byte count per MiB and the final one, then terminates it", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  await writeRandom(path, SIZE);
  const cases = [
    [[MIB - 1, MIB, MIB + 1, 2 * MIB, SIZE], [MIB, 2 * MIB, SIZE]],
    [[SIZE - 1, SIZE], [SIZE - 1, SIZE]],
  ];
  for (const [all, expected] of cases) {
    using workers = watchWorkers();
    const watchByteCount = () => counts(...all);
    await sha256OfGrowingFile(path, {
      size: SIZE,
      watchByteCount,
      engine: "runtime",
    });
    assertEquals(workers.sent, [...expected, "terminated"]);
  }
});

const RESTRICTED = `
import { sha256OfGrowingFile } from "/lib/transfer/file_digest.ts";
let started = 0;
globalThis.Worker = class extends Worker {
  constructor(...args: ConstructorParameters<typeof Worker>) {
    super(...args);
    this.addEventListener("message", () => started++);
  }
};
const [path] = Deno.args;
const { size } = await Deno.stat(path);
const watchPrefixLength = async function* () { yield size; };
const file = { path, size, watchPrefixLength, engine: "runtime" as const };
const { signal } = new AbortController();
console.log(await sha256OfGrowingFile(file, signal), started);
`;

Deno.test("sha256OfGrowingFile() needs only --allow-read for the file, also in its worker", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  await writeRandom(path, SIZE);
  const digest = await sha256OfChunks(readFileChunks(path));
  const printed = await runScript(`${dir.path}/main.ts`, RESTRICTED, {
    args: [path],
    permissions: [`--allow-read=${path}`, "--no-remote", "--cached-only"],
  });
  assert(printed.endsWith(`${digest} 1\n`), printed);
});
