/**
 * Checks everything but the tests: format, lint, types, documentation, the
 * project's own rules, and whether JSR would take it.
 *
 *     deno task check
 *     deno task ci:quick   # format, lint, types, and tests without processes
 *
 * @module
 */
import { deno, importsFrom, ROOT } from "./deno.ts";

type Step = [name: string, args: string[]];

const FIRST: Step[] = [
  ["format", ["fmt", "--check"]],
  ["lint", ["lint"]],
  ["types", ["check", "mod.ts", "cli.ts", "lib/", "scripts/", "tests/"]],
];
const QUICK: Step[] = [
  ["unit tests", ["run", "-A", "scripts/test.ts", "--quick"]],
];
const REST: Step[] = [
  ["documentation", ["doc", "--lint", "mod.ts", "cli.ts"]],
  ["examples", ["test", "-A", "--quiet", "--doc", "lib/"]],
  ["rules", ["run", "--allow-read", "scripts/check_rules.ts"]],
];

const quick = Deno.args.includes("--quick");
const steps = [...FIRST, ...quick ? QUICK : REST];
if (!quick) {
  if (await importsFrom() === "jsr") {
    // What JSR would refuse, such as types that are slow to infer.
    steps.push(["publishing", ["publish", "--dry-run", "--allow-dirty"]]);
  } else {
    console.error("check: publishing is left out, it needs jsr.io");
  }
}

Deno.chdir(ROOT);
let failed = 0;
for (const [name, args] of steps) {
  console.error(`check: ${name}`);
  if ((await deno(...args)).code !== 0) failed++;
}
console.error(failed ? `${failed} of ${steps.length} failed` : "all good");
Deno.exitCode = failed ? 1 : 0;
