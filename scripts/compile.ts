/**
 * Writes `dist/toolsmith`, a program that needs no Deno, and its `.sha256`.
 *
 *     deno task compile          # for this host
 *     deno task compile --all    # dist/toolsmith-<target> for every target
 *
 * @module
 */
import { BUNDLE, bundle } from "./bundle.ts";
import { fileChunks, sha256 } from "../lib/system/digest.ts";
import { deno, ROOT } from "./deno.ts";

const TARGETS = [
  "x86_64-unknown-linux-gnu",
  "aarch64-unknown-linux-gnu",
  "x86_64-apple-darwin",
  "aarch64-apple-darwin",
  "x86_64-pc-windows-msvc",
  "aarch64-pc-windows-msvc",
];

/** Compiles for a target, or for this host. */
async function compile(target?: string): Promise<boolean> {
  const windows = target?.includes("windows") ?? Deno.build.os === "windows";
  const name = `toolsmith${target ? `-${target}` : ""}${windows ? ".exe" : ""}`;
  const output = `${ROOT}/dist/${name}`;
  // Who may run any program may do all; /proc is read with nothing less.
  const args = ["--allow-all", "--no-check", "--quiet", "--output", output];
  if (target) args.push("--target", target);
  const { code } = await deno("compile", ...args, BUNDLE);
  if (code !== 0) {
    console.error(
      `cannot compile ${name}: if the runtime could not be downloaded, put the denort of Deno ${Deno.version.deno} for this target on disk and name it in DENORT_BIN`,
    );
    return false;
  }
  const digest = await sha256(fileChunks(output));
  await Deno.writeTextFile(`${output}.sha256`, `${digest}  ${name}\n`);
  console.error(`wrote ${output}`);
  return true;
}

if (import.meta.main) {
  let failed = !await bundle();
  const targets = Deno.args.includes("--all") ? TARGETS : [undefined];
  for (const target of failed ? [] : targets) {
    failed = !await compile(target) || failed;
  }
  if (failed) Deno.exitCode = 1;
}
