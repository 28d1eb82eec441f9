/**
 * Runs all checks except the tests: format, lint, types, documentation, the
 * project's import rules, and JSR's publishing checks.
 *
 *     deno task check
 *     deno task ci:quick   # format, lint, types, and tests without processes
 */
import config from "../deno.json" with { type: "json" };
import { findImportSource, PROJECT_ROOT, runDeno } from "./deno.ts";

type CheckStep = [name: string, args: string[]];

const ENTRY_POINTS = Object.values(config.exports);
/** Examples that are run; those marked `no-run` need a registry or a guest. */
const RUNNABLE_EXAMPLE = /^ \* ```ts$/m;

const COMMON_STEPS: CheckStep[] = [
  ["format", ["fmt", "--check"]],
  ["lint", ["lint"]],
  ["types", ["check", "mod.ts", "cli.ts", "lib/", "scripts/", "tests/"]],
];
const QUICK_STEPS: CheckStep[] = [
  ["unit tests", ["run", "-A", "scripts/test.ts", "--quick"]],
];
const FULL_STEPS: CheckStep[] = [
  ["documentation", ["doc", "--lint", ...ENTRY_POINTS]],
  ["types of examples", ["check", "--doc", ...ENTRY_POINTS, "lib/"]],
  ["examples", [
    "test",
    "-A",
    "--quiet",
    "--doc",
    ...filesWithRunnableExamples(),
  ]],
  ["rules", ["run", "--allow-read", "scripts/check_rules.ts"]],
];

function filesWithRunnableExamples(dir = "lib"): string[] {
  return [...Deno.readDirSync(`${PROJECT_ROOT}/${dir}`)].flatMap((entry) => {
    const path = `${dir}/${entry.name}`;
    if (entry.isDirectory) return filesWithRunnableExamples(path);
    return RUNNABLE_EXAMPLE.test(
        Deno.readTextFileSync(`${PROJECT_ROOT}/${path}`),
      )
      ? [path]
      : [];
  });
}

const quick = Deno.args.includes("--quick");
const steps = [...COMMON_STEPS, ...quick ? QUICK_STEPS : FULL_STEPS];
if (!quick) {
  if (await findImportSource() === "jsr") {
    // JSR rejects, for example, types that are slow to infer.
    steps.push(["publishing", ["publish", "--dry-run", "--allow-dirty"]]);
  } else {
    console.error("check: skipping the publishing check, which needs jsr.io");
  }
}

Deno.chdir(PROJECT_ROOT);
let failedCount = 0;
for (const [name, args] of steps) {
  console.error(`check: ${name}`);
  if ((await runDeno(...args)).code !== 0) failedCount++;
}
console.error(
  failedCount
    ? `${failedCount} of ${steps.length} failed`
    : "all checks passed",
);
Deno.exitCode = failedCount ? 1 : 0;
