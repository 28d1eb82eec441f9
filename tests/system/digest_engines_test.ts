/**
 * Which implementation computes a digest.
 */
import { assertEquals } from "@std/assert";
import { fileChunks, sha256, transferEngine } from "../../lib/system/digest.ts";
import { denoArgs, ROOT } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { runScript } from "../support/script.ts";
import { stdBytes, writeRandom } from "../support/digests.ts";

const MIB = 1024 * 1024;

Deno.test("both engines compute the same digest of one large file", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  const size = 200 * MIB + 7;
  await writeRandom(path, size);
  using std = stdBytes();
  const runtime = await sha256(fileChunks(path), "runtime");
  assertEquals(std.bytes, 0);
  assertEquals(await sha256(fileChunks(path), "std"), runtime);
  assertEquals(std.bytes, size);
});

Deno.test("transferEngine chooses the runtime from 64 MiB on, and std wherever TOOLSMITH_DIGEST says so", () => {
  const chosen = (value?: string) => {
    const env = new Map(
      value === undefined ? [] : [["TOOLSMITH_DIGEST", value]],
    );
    return [0, 64 * MIB - 1, 64 * MIB, Infinity]
      .map((bytes) => transferEngine(bytes, env));
  };
  assertEquals(chosen(), ["std", "std", "runtime", "runtime"]);
  assertEquals(chosen(""), ["std", "std", "runtime", "runtime"]);
  assertEquals(chosen("std"), ["std", "std", "std", "std"]);
});

Deno.test("transferEngine rejects another value of TOOLSMITH_DIGEST, for an image of any size", async () => {
  for (const value of ["Std", "runtime", "node", "0", "x".repeat(80)]) {
    for (const bytes of [1, 64 * MIB]) {
      const env = new Map([["TOOLSMITH_DIGEST", value]]);
      const { message, hint } = await failure(
        "usage",
        () => Promise.resolve().then(() => transferEngine(bytes, env)),
      );
      const shown = value.length > 40 ? `${"x".repeat(40)}…` : value;
      assertEquals(message, `Cannot use TOOLSMITH_DIGEST=${shown}`);
      assertEquals(hint, "set TOOLSMITH_DIGEST to std, or unset it");
    }
  }
});

const HASH = `
import { sha256 } from "/lib/system/digest.ts";
import { arrivingSha256 } from "/lib/system/arriving_digest.ts";
const [path] = Deno.args;
const bytes = await Deno.readFile(path);
const size = bytes.length;
console.log(await sha256(ReadableStream.from([bytes]), "runtime"));
const arrivals = async function* () { yield size; };
console.log(await arrivingSha256(path, { size, arrivals, engine: "runtime" }));
`;

Deno.test("sha256 uses @std/crypto where the runtime has no implementation of its own", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  await writeRandom(path, 3 * MIB + 1);
  const digest = await sha256(fileChunks(path));
  const map = await withoutNodeCrypto(dir.path);
  const printed = await runScript(`${dir.path}/hash.ts`, HASH, {
    args: [path],
    importMap: map,
  });
  // Deno prints what is wrong in the thread.
  assertEquals(printed.match(/^[0-9a-f]{64}$/gm), [digest, digest]);
});

/** The import map that is in use, but for `node:crypto`, which fails. */
async function withoutNodeCrypto(dir: string): Promise<string> {
  const flag = "--import-map=";
  const [, arg] = await denoArgs(["run"]);
  const map = arg?.startsWith(flag)
    ? arg.slice(flag.length)
    : `${ROOT}/deno.json`;
  const { imports } = JSON.parse(await Deno.readTextFile(map));
  for (const [name, target] of Object.entries<string>(imports)) {
    if (target.startsWith(".")) {
      imports[name] = new URL(target, `file://${map}`).href;
    }
  }
  imports["node:crypto"] = "data:text/javascript,throw new Error('none')";
  const path = `${dir}/import_map.json`;
  await Deno.writeTextFile(path, JSON.stringify({ imports }));
  return path;
}
