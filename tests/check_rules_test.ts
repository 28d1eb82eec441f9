import { assertEquals } from "@std/assert";
import { breaches } from "../scripts/check_rules.ts";
import { ROOT } from "../scripts/deno.ts";
import { temporaryFolder } from "./_folder.ts";

const PAGE = `
| Level | File | What |
| ----- | ---- | ---- |
| 0     | \`low.ts\`      | x |
| 0     | \`process.ts\`  | x |
| 1     | \`high.ts\`     | x |
| 1     | \`peer.ts\`     | x |
| 2     | \`cli/top.ts\`  | x |
`;

const GOOD = {
  "low.ts": `export const low = 1;\n`,
  "process.ts": `new Deno.Command("x");\n`,
  "high.ts":
    `import { low } from "./low.ts";\nimport { join } from "@std/path";\n`,
  "peer.ts":
    `/**\n * import "./high.ts"; console.log(); new Deno.Command();\n */\n// Deno.exit()\n`,
  "cli/top.ts":
    `import {\n  low,\n} from "../low.ts";\nexport * from "../high.ts";\n`,
};

/** Finds what breaks the rules in a small tree that differs from a good one. */
async function found(files: Record<string, string>) {
  await using folder = await temporaryFolder();
  await Deno.mkdir(`${folder.path}/docs`);
  await Deno.mkdir(`${folder.path}/lib/cli`, { recursive: true });
  await Deno.writeTextFile(`${folder.path}/docs/ARCHITECTURE.md`, PAGE);
  for (const [name, text] of Object.entries({ ...GOOD, ...files })) {
    await Deno.writeTextFile(`${folder.path}/lib/${name}`, text);
  }
  return breaches(folder.path);
}

Deno.test("the code keeps the rules of docs/ARCHITECTURE.md", () => {
  assertEquals(breaches(ROOT), []);
});

Deno.test("a tree that keeps the rules has no breach", async () => {
  assertEquals(await found({}), []);
});

const BREACHES: [string, string, string, string][] = [
  [
    "an import of a higher level",
    "low.ts",
    `import { x } from "./high.ts";`,
    "lib/low.ts (level 0) imports high.ts (level 1)",
  ],
  [
    "an import of the same level",
    "high.ts",
    `import type { x } from "./peer.ts";`,
    "lib/high.ts (level 1) imports peer.ts (level 1)",
  ],
  [
    "an import for its effects",
    "low.ts",
    `import "./high.ts";`,
    "lib/low.ts (level 0) imports high.ts (level 1)",
  ],
  [
    "an import at run time",
    "low.ts",
    `const it = await import("./high.ts");`,
    "lib/low.ts (level 0) imports high.ts (level 1)",
  ],
  [
    "a re-export",
    "low.ts",
    `export * from "./cli/top.ts";`,
    "lib/low.ts (level 0) imports cli/top.ts (level 2)",
  ],
  [
    "a file that the page does not name",
    "stray.ts",
    "",
    "lib/stray.ts: has no level in docs/ARCHITECTURE.md",
  ],
  [
    "a process started elsewhere",
    "high.ts",
    `new Deno.Command("x");`,
    "lib/high.ts: names Deno.Command; use process.ts",
  ],
  [
    "a print",
    "high.ts",
    `console.log("x");`,
    "lib/high.ts: exits or prints; that is for the entry point",
  ],
  [
    "an exit",
    "cli/top.ts",
    `Deno.exitCode = 1;`,
    "lib/cli/top.ts: exits or prints; that is for the entry point",
  ],
];

for (const [name, file, text, breach] of BREACHES) {
  Deno.test(`${name} is found`, async () => {
    assertEquals(await found({ [file]: text }), [breach]);
  });
}
