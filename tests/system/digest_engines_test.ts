/**
 * Selection of the SHA-256 implementation, and its fallback.
 */
import { assertEquals } from "@std/assert";
import {
  readFileChunks,
  selectDigestEngine,
  sha256OfChunks,
} from "../../lib/system/digest.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { runScript } from "../support/script.ts";
import { countStdDigestBytes, writeRandom } from "../support/digests.ts";

const MIB = 1024 * 1024;

Deno.test("sha256OfChunks() computes the same digest of a large file with both engines", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  const size = 200 * MIB + 7;
  await writeRandom(path, size);
  using std = countStdDigestBytes();
  const runtime = await sha256OfChunks(readFileChunks(path), "runtime");
  assertEquals(std.bytes, 0);
  assertEquals(await sha256OfChunks(readFileChunks(path), "std"), runtime);
  assertEquals(std.bytes, size);
});

Deno.test("selectDigestEngine() selects the runtime engine from 64 MiB on, and std if TOOLSMITH_DIGEST=std", () => {
  const chosen = (value?: string) => {
    const env = new Map(
      value === undefined ? [] : [["TOOLSMITH_DIGEST", value]],
    );
    return [0, 64 * MIB - 1, 64 * MIB, Infinity]
      .map((bytes) => selectDigestEngine(bytes, env));
  };
  assertEquals(chosen(), ["std", "std", "runtime", "runtime"]);
  assertEquals(chosen(""), ["std", "std", "runtime", "runtime"]);
  assertEquals(chosen("std"), ["std", "std", "std", "std"]);
});

Deno.test("selectDigestEngine() rejects an unknown value of TOOLSMITH_DIGEST for any image size", async () => {
  for (const value of ["Std", "runtime", "node", "0", "x".repeat(80)]) {
    for (const bytes of [1, 64 * MIB]) {
      const env = new Map([["TOOLSMITH_DIGEST", value]]);
      const { message, hint } = await expectFailure(
        "usage",
        () => Promise.resolve().then(() => selectDigestEngine(bytes, env)),
      );
      const shown = value.length > 40 ? `${"x".repeat(40)}…` : value;
      assertEquals(message, `Cannot use TOOLSMITH_DIGEST=${shown}`);
      assertEquals(hint, "set TOOLSMITH_DIGEST=std, or unset TOOLSMITH_DIGEST");
    }
  }
});

const HASH = `
import { sha256OfChunks } from "/lib/system/digest.ts";
import { sha256OfGrowingFile } from "/lib/transfer/file_digest.ts";
const [path] = Deno.args;
const bytes = await Deno.readFile(path);
const size = bytes.length;
console.log(await sha256OfChunks(ReadableStream.from([bytes]), "runtime"));
const watchPrefixLength = async function* () { yield size; };
const file = { path, size, watchPrefixLength, engine: "runtime" as const };
const { signal } = new AbortController();
console.log(await sha256OfGrowingFile(file, signal));
`;

Deno.test("sha256OfChunks() falls back to @std/crypto when node:crypto cannot be imported", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  await writeRandom(path, 3 * MIB + 1);
  const digest = await sha256OfChunks(readFileChunks(path));
  const map = await withoutNodeCrypto(dir.path);
  const printed = await runScript(`${dir.path}/hash.ts`, HASH, {
    args: [path],
    importMap: map,
  });
  // Deno also prints the error in the worker.
  assertEquals(printed.match(/^[0-9a-f]{64}$/gm), [digest, digest]);
});

/** Copies the import map with a `node:crypto` that cannot be imported. */
async function withoutNodeCrypto(dir: string): Promise<string> {
  const flag = "--import-map=";
  const [, arg] = await withImportMap(["run"]);
  const map = arg?.startsWith(flag)
    ? arg.slice(flag.length)
    : `${PROJECT_ROOT}/deno.json`;
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
