/**
 * Compiles `dist/toolsmith`, which runs without Deno, and writes its `.sha256`.
 *
 *     deno task compile          # for this host
 *     deno task compile --all    # dist/toolsmith-<target> for every target
 */
import { BUNDLE_PATH, writeBundle } from "./bundle.ts";
import { readFileChunks, sha256OfChunks } from "../lib/system/digest.ts";
import { PROJECT_ROOT, runDeno } from "./deno.ts";

const COMPILE_TARGETS = [
  "x86_64-unknown-linux-gnu",
  "aarch64-unknown-linux-gnu",
  "x86_64-apple-darwin",
  "aarch64-apple-darwin",
  "x86_64-pc-windows-msvc",
  "aarch64-pc-windows-msvc",
];

async function compileProgram(target?: string): Promise<boolean> {
  const windows = target?.includes("windows") ?? Deno.build.os === "windows";
  const name = `toolsmith${target ? `-${target}` : ""}${windows ? ".exe" : ""}`;
  const output = `${PROJECT_ROOT}/dist/${name}`;
  // Permission to run any program is as good as all; reading /proc needs all.
  const args = ["--allow-all", "--no-check", "--quiet", "--output", output];
  if (target) args.push("--target", target);
  const { code } = await runDeno("compile", ...args, BUNDLE_PATH);
  if (code !== 0) {
    console.error(
      `cannot compile ${name}: if the runtime cannot be downloaded, set DENORT_BIN to the denort of Deno ${Deno.version.deno} for this target`,
    );
    return false;
  }
  const digest = await sha256OfChunks(readFileChunks(output));
  await Deno.writeTextFile(`${output}.sha256`, `${digest}  ${name}\n`);
  console.error(`wrote ${output}`);
  return true;
}

if (import.meta.main) {
  let failed = !await writeBundle();
  const targets = Deno.args.includes("--all") ? COMPILE_TARGETS : [undefined];
  for (const target of failed ? [] : targets) {
    failed = !await compileProgram(target) || failed;
  }
  if (failed) Deno.exitCode = 1;
}
