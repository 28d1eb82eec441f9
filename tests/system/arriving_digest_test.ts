import { assert, assertEquals, assertRejects } from "@std/assert";
import { arrivingSha256 } from "../../lib/system/arriving_digest.ts";
import { fileChunks, sha256 } from "../../lib/system/digest.ts";
import { stdBytes, writeRandom } from "../support/digests.ts";
import { temporaryDir } from "../support/directory.ts";
import { replace } from "../support/replace.ts";
import { runScript } from "../support/script.ts";

const MIB = 1024 * 1024;
const SIZE = 3 * MIB + 1;
const ENGINES = ["std", "runtime"] as const;

async function* counts(...all: number[]) {
  yield* all;
}

/** Workers that were started and what they were sent, until it is disposed. */
function watchWorkers() {
  const sent: unknown[] = [];
  let started = 0;
  const replaced = replace(globalThis, {
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

Deno.test("arrivingSha256 computes the digest of the whole file, in whatever steps it arrives", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  for (const size of [1, MIB, SIZE]) {
    await writeRandom(path, size);
    const whole = await sha256(fileChunks(path));
    const steps = [1, 5, size - 1, size].filter((at) => at > 0 && at <= size);
    for (const all of [steps, [size]]) {
      for (const engine of ENGINES) {
        const arrivals = () => counts(...all);
        assertEquals(
          await arrivingSha256(path, { size, arrivals, engine }),
          whole,
        );
      }
    }
  }
});

Deno.test("arrivingSha256 fails as a read of the file does, when that was cut short or is gone", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  for (const engine of ENGINES) {
    await writeRandom(path, SIZE - 1);
    const arrivals = () => counts(SIZE);
    const compute = () =>
      arrivingSha256(path, { size: SIZE, arrivals, engine });
    await assertRejects(compute, Error, "was cut short");
    await Deno.remove(path);
    await assertRejects(compute, Deno.errors.NotFound);
  }
});

Deno.test("arrivingSha256 stops when its signal is aborted", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  await writeRandom(path, SIZE);
  for (const engine of ENGINES) {
    const stop = new AbortController();
    const arrivals = async function* () {
      stop.abort(new Error("enough"));
      yield SIZE;
    };
    const { signal } = stop;
    const compute = () =>
      arrivingSha256(path, { size: SIZE, arrivals, engine, signal });
    await assertRejects(compute, Error, "enough");
  }
});

Deno.test("arrivingSha256 reads nothing synchronously in the program's own thread", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  await writeRandom(path, SIZE);
  using _system = replace(Deno.FsFile.prototype, {
    readSync() {
      throw new Error("everybody waits for the disk");
    },
  });
  for (const engine of ENGINES) {
    const arrivals = () => counts(SIZE);
    await arrivingSha256(path, { size: SIZE, arrivals, engine });
  }
});

Deno.test("arrivingSha256 starts a thread for the runtime's engine only", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  await writeRandom(path, SIZE);
  const arrivals = () => counts(SIZE);
  using workers = watchWorkers();
  using std = stdBytes();
  await arrivingSha256(path, { size: SIZE, arrivals });
  assertEquals([workers.started(), std.bytes], [0, SIZE]);
  await arrivingSha256(path, { size: SIZE, arrivals, engine: "runtime" });
  assertEquals([workers.started(), std.bytes], [1, SIZE]);
});

Deno.test("arrivingSha256 computes the digest itself where no thread can be started", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  await writeRandom(path, SIZE);
  const whole = await sha256(fileChunks(path));
  using _system = replace(globalThis, {
    Worker: class {
      constructor() {
        throw new Error("no threads");
      }
    },
  });
  const arrivals = () => counts(SIZE);
  const options = { size: SIZE, arrivals, engine: "runtime" as const };
  assertEquals(await arrivingSha256(path, options), whole);
});

Deno.test("arrivingSha256 sends its thread a count for every MiB and the last one, and terminates it", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  await writeRandom(path, SIZE);
  const cases = [
    [[MIB - 1, MIB, MIB + 1, 2 * MIB, SIZE], [MIB, 2 * MIB, SIZE]],
    [[SIZE - 1, SIZE], [SIZE - 1, SIZE]],
  ];
  for (const [all, expected] of cases) {
    using workers = watchWorkers();
    const arrivals = () => counts(...all);
    await arrivingSha256(path, { size: SIZE, arrivals, engine: "runtime" });
    assertEquals(workers.sent, [...expected, "terminated"]);
  }
});

const RESTRICTED = `
import { arrivingSha256 } from "/lib/system/arriving_digest.ts";
let started = 0;
globalThis.Worker = class extends Worker {
  constructor(...args: ConstructorParameters<typeof Worker>) {
    super(...args);
    this.addEventListener("message", () => started++);
  }
};
const [path] = Deno.args;
const { size } = await Deno.stat(path);
const arrivals = async function* () { yield size; };
const options = { size, arrivals, engine: "runtime" as const };
console.log(await arrivingSha256(path, options), started);
`;

Deno.test("arrivingSha256 needs no permission for its thread but to read the file", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  await writeRandom(path, SIZE);
  const digest = await sha256(fileChunks(path));
  const printed = await runScript(`${dir.path}/main.ts`, RESTRICTED, {
    args: [path],
    permissions: [`--allow-read=${path}`, "--no-remote", "--cached-only"],
  });
  assert(printed.endsWith(`${digest} 1\n`), printed);
});
