import { assertEquals, assertRejects } from "@std/assert";
import { arrivingSha256 } from "../../lib/system/arriving_digest.ts";
import { fileChunks, sha256 } from "../../lib/system/digest.ts";
import { ROOT } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";
import { replace } from "../support/replace.ts";
import { runScript } from "../support/script.ts";

const MIB = 1024 * 1024;
const SIZES = [0, 3 * MIB + 1, 65 * MIB + 7];

async function* counts(...all: number[]) {
  yield* all;
}

Deno.test("the digest of a file that arrives is that of the whole, whatever steps it comes in", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  for (const size of SIZES) {
    const bytes = new Uint8Array(size);
    // It gives no more at once.
    for (let at = 0; at < size; at += 65536) {
      crypto.getRandomValues(bytes.subarray(at, at + 65536));
    }
    await Deno.writeFile(path, bytes);
    const whole = await sha256(fileChunks(path));
    const steps = [1, 5, size - 1, size].filter((at) => at > 0 && at <= size);
    for (const all of [steps, size > 0 ? [size] : []]) {
      const arrivals = () => counts(...all);
      assertEquals(await arrivingSha256(path, { size, arrivals }), whole);
    }
  }
});

Deno.test("the digest of a file that is cut short, or gone, fails as reading it does", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  for (const size of SIZES.slice(1)) {
    await Deno.writeFile(path, new Uint8Array(size - 1));
    const arrivals = () => counts(size);
    const compute = () => arrivingSha256(path, { size, arrivals });
    await assertRejects(compute, Error, "was cut short");
    await Deno.remove(path);
    await assertRejects(compute, Deno.errors.NotFound);
  }
});

Deno.test("the digest of a file that is there can be stopped", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  for (const size of SIZES.slice(1)) {
    await Deno.writeFile(path, new Uint8Array(size));
    const stop = new AbortController();
    const arrivals = async function* () {
      stop.abort(new Error("enough"));
      yield size;
    };
    const { signal } = stop;
    const compute = () => arrivingSha256(path, { size, arrivals, signal });
    await assertRejects(compute, Error, "enough");
  }
});

Deno.test("who computes the digest of a small file lets others have their turns meanwhile", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  await Deno.writeFile(path, new Uint8Array(9));
  using _system = replace(Deno.FsFile.prototype, {
    readSync() {
      throw new Error("everybody waits for the disk");
    },
  });
  await arrivingSha256(path, { size: 9, arrivals: () => counts(9) });
});

// The worker's own end would be this process's, and its output this one's.
const MAIN = `
import { arrivingSha256 } from "/lib/system/arriving_digest.ts";
const started: string[] = [];
globalThis.Worker = class extends Worker {
  constructor(url: string | URL, options: WorkerOptions) {
    super(url, options);
    started.push(String(url).split("/").at(-1)!);
  }
};
const [path] = Deno.args;
const { size } = await Deno.stat(path);
const arrivals = async function* () { yield size; };
console.log(await arrivingSha256(path, { size, arrivals }), ...started);
`;

Deno.test("a thread computes the digest of a large file, where it may read the program", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  await Deno.writeFile(path, new Uint8Array(64 * MIB));
  const digest = await sha256(fileChunks(path));
  const run = (...permissions: string[]) =>
    runScript(`${dir.path}/main.ts`, MAIN, { args: [path], permissions });
  assertEquals(
    await run(`--allow-read=${dir.path},${ROOT}`),
    `${digest} arriving_digest.ts\n`,
  );
  assertEquals(await run(`--allow-read=${dir.path}`), `${digest}\n`);
});

const COUNTING = `
import { arrivingSha256 } from "/lib/system/arriving_digest.ts";
const told: unknown[] = [];
globalThis.Worker = class extends Worker {
  postMessage(message: unknown) {
    told.push(message);
    super.postMessage(message);
  }
  terminate() {
    told.push("ended");
    super.terminate();
  }
};
const [path, ...counts] = Deno.args;
const { size } = await Deno.stat(path);
const arrivals = async function* () { yield* counts.map(Number); };
await arrivingSha256(path, { size, arrivals });
console.log(JSON.stringify(told.slice(1)));
`;

Deno.test("a thread is told of every MiB and of the end, each once, and is ended", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  const size = 64 * MIB;
  await Deno.writeFile(path, new Uint8Array(size));
  const cases = [
    [[MIB - 1, MIB, MIB + 1, 2 * MIB, size], [MIB, 2 * MIB, size]],
    [[size - 1, size], [size - 1, size]],
  ];
  for (const [counts, told] of cases) {
    const args = [path, ...counts.map(String)];
    const said = await runScript(`${dir.path}/count.ts`, COUNTING, { args });
    assertEquals(JSON.parse(said), [...told, null, "ended"]);
  }
});
