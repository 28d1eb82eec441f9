/**
 * Checks everything but the tests: format, lint, types, documentation, the
 * project's own rules, and whether JSR would take it.
 *
 *     deno task check
 *
 * @module
 */
import { deno, importsFrom, ROOT } from "./deno.ts";

const STEPS: [string, string[]][] = [
  ["format", ["fmt", "--check"]],
  ["lint", ["lint"]],
  ["types", ["check", "mod.ts", "cli.ts", "lib/", "scripts/", "tests/"]],
  ["documentation", ["doc", "--lint", "mod.ts", "cli.ts"]],
  ["examples", ["test", "-A", "--quiet", "--doc", "lib/"]],
  ["rules", ["run", "--allow-read", "scripts/check_rules.ts"]],
];

if (await importsFrom() === "jsr") {
  // What JSR would refuse, such as types that are slow to infer.
  STEPS.push(["publishing", ["publish", "--dry-run", "--allow-dirty"]]);
} else {
  console.error("check: publishing is left out, it needs jsr.io");
}

Deno.chdir(ROOT);
let failed = 0;
for (const [name, args] of STEPS) {
  console.error(`check: ${name}`);
  if ((await deno(...args)).code !== 0) failed++;
}
console.error(failed ? `${failed} of ${STEPS.length} failed` : "all good");
Deno.exitCode = failed ? 1 : 0;
