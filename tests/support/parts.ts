/**
 * The real programs that tests run. `deno task test` installs them; a test file that
 * runs alone uses those that exist.
 */
import { resolve } from "@std/path";
import { findTools, type Part, type Tools } from "../../scripts/setup.ts";
import { installHint } from "../../scripts/setup/parts.ts";

/** The path of each part's program; absent if missing or excluded. */
export const foundTools: Tools = await findTools();
const excludedParts = Deno.env.get("TOOLSMITH_TEST_WITHOUT") ?? "";
for (const part of excludedParts.split(",")) delete foundTools[part as Part];

/** The guest's shell, which runs on this host too. */
export const BUSYBOX = foundTools.guest
  ? resolve(foundTools.guest, "../../root/bin/busybox")
  : "/bin/busybox";

const reportedParts = new Set<Part | "root">();

/**
 * Spread into the definition of a test that needs programs or root: the test is skipped,
 * and that is reported, if one is missing. CI must have all programs.
 *
 * @param names The parts; `root` for root on Linux.
 * @throws {Error} In CI, when a program is missing.
 * @example
 * ```ts
 * Deno.test({ name: "pushes", ...requires("oras", "registry"), fn: () => {} });
 * ```
 */
export function requires(...names: (Part | "root")[]): { ignore: boolean } {
  const isRoot = Deno.build.os === "linux" && Deno.uid() === 0;
  const absent = names.filter((name) =>
    name === "root" ? !isRoot : !foundTools[name]
  );
  for (const name of absent) {
    const line = name === "root"
      ? "root is needed"
      : `${name} is missing: ${installHint(name)}`;
    if (name !== "root" && Deno.env.get("CI") === "true") throw new Error(line);
    if (!reportedParts.has(name)) reportMissing(name, line);
    reportedParts.add(name);
  }
  return { ignore: absent.length > 0 };
}

/** `deno task test` reports each reason once, for all files. */
function reportMissing(name: string, line: string): void {
  const path = Deno.env.get("TOOLSMITH_TEST_MISSING");
  if (path) Deno.writeTextFileSync(path, `${name}\n`, { append: true });
  else console.error(`skipping tests: ${line}`);
}
