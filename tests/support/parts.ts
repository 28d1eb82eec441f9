/**
 * The real programs that tests run. `deno task test` brings them; a test file
 * that runs alone takes what is there.
 *
 * @module
 */
import { resolve } from "@std/path";
import { findTools, type Part, type Tools } from "../../scripts/setup.ts";
import { remedyOf } from "../../scripts/setup/parts.ts";

/** Where each program is; absent where it is missing, or not to be used. */
export const parts: Tools = await findTools();
const unwanted = Deno.env.get("TOOLSMITH_TEST_WITHOUT") ?? "";
for (const part of unwanted.split(",")) delete parts[part as Part];

/** The guest's own shell, which this host can run. */
export const BUSYBOX = parts.guest
  ? resolve(parts.guest, "../../root/bin/busybox")
  : "/bin/busybox";

const said = new Set<Part | "root">();

/**
 * What a test that needs programs, or root, spreads into its definition: it is
 * skipped where one is missing, and that is reported. A build farm must have all
 * programs.
 *
 * @param names The programs; `root` for root on Linux.
 * @returns The part of a test's definition.
 * @throws {Error} On a build farm, when a program is missing.
 * @example
 * ```ts
 * Deno.test({ name: "pushes", ...needs("oras", "registry"), fn: () => {} });
 * ```
 */
export function needs(...names: (Part | "root")[]): { ignore: boolean } {
  const isRoot = Deno.build.os === "linux" && Deno.uid() === 0;
  const absent = names.filter((name) =>
    name === "root" ? !isRoot : !parts[name]
  );
  for (const name of absent) {
    const line = name === "root"
      ? "root is needed"
      : `${name} is missing: ${remedyOf(name)}`;
    if (name !== "root" && Deno.env.get("CI") === "true") throw new Error(line);
    if (!said.has(name)) report(name, line);
    said.add(name);
  }
  return { ignore: absent.length > 0 };
}

/** `deno task test` reports each reason once, for all files. */
function report(name: string, line: string): void {
  const path = Deno.env.get("TOOLSMITH_TEST_MISSING");
  if (path) Deno.writeTextFileSync(path, `${name}\n`, { append: true });
  else console.error(`skipping tests: ${line}`);
}
