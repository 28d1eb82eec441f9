import { assertEquals } from "@std/assert";
import { findRuleViolations } from "../../scripts/check_rules.ts";
import { PROJECT_ROOT } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";

const DIAGRAM = `
  cli --> top & base
  top -- public --> store
  top --> base
`;

const VALID_TREE = {
  "../mod.ts": `export * from "./lib/top/top.ts";\n`,
  "../cli.ts": `import "./lib/cli/main.ts";\n`,
  "core.ts": `export const core = 1;\n`,
  "system/process.ts": `new Deno.Command("x");\n`,
  "base/base.ts": `import { core } from "../core.ts";\n`,
  "base/_own.ts":
    `/**\n * import "../top/top.ts"; console.log(); new Deno.Command();\n */\n// Deno.exit()\n`,
  "store/public.ts": `import { own } from "./_console.ts";\n`,
  "store/_console.ts": ``,
  "store/other.ts": ``,
  "top/top.ts":
    `import {\n  base,\n} from "../base/base.ts";\nimport "../store/public.ts";\n`,
  "cli/main.ts": `import "./commands/run.ts";\n`,
  "cli/commands/run.ts": `import { top } from "../../top/top.ts";\n`,
};

/** Returns the violations in a small tree with some files replaced. */
async function violationsIn(files: Record<string, string>, diagram = DIAGRAM) {
  await using dir = await temporaryDir();
  await Deno.mkdir(`${dir.path}/docs`);
  await Deno.writeTextFile(
    `${dir.path}/docs/architecture.md`,
    `${diagram}  top --> system\n`,
  );
  for (const [name, text] of Object.entries({ ...VALID_TREE, ...files })) {
    const path = `${dir.path}/lib/${name}`;
    await Deno.mkdir(path.slice(0, path.lastIndexOf("/")), { recursive: true });
    await Deno.writeTextFile(path, text);
  }
  return findRuleViolations(dir.path);
}

Deno.test("findRuleViolations() finds none in this repository", () => {
  assertEquals(findRuleViolations(PROJECT_ROOT), []);
});

Deno.test("findRuleViolations() finds none in a valid tree", async () => {
  assertEquals(await violationsIn({}), []);
});

const VIOLATIONS: [string, string, string, string][] = [
  [
    "an import of a public entry point",
    "base/base.ts",
    `import { x } from "../vm.ts";`,
    "lib/base/base.ts imports vm.ts: it is a public entry point",
  ],
  [
    "an import without an arrow",
    "base/base.ts",
    `import { x } from "../store/public.ts";`,
    "lib/base/base.ts imports store/public.ts: the diagram has no arrow from base to store",
  ],
  [
    "an import against an arrow",
    "base/base.ts",
    `import type { x } from "../cli/main.ts";`,
    "lib/base/base.ts imports cli/main.ts: the diagram has no arrow from base to cli",
  ],
  [
    "an import of another package's private file",
    "top/top.ts",
    `import { x } from "../base/_own.ts";`,
    "lib/top/top.ts imports base/_own.ts: it is private to base",
  ],
  [
    "an export of a private file by the library",
    "../mod.ts",
    `export * from "./lib/base/_own.ts";`,
    "lib/../mod.ts imports base/_own.ts: it is private to base",
  ],
  [
    "an import of a package by a core module",
    "core.ts",
    `const x = await import("./top/top.ts");`,
    "lib/core.ts imports top/top.ts: a core module imports no package",
  ],
  [
    "an import of another file than the arrow allows",
    "top/top.ts",
    `import "../store/other.ts";`,
    "lib/top/top.ts imports store/other.ts: top may import only public.ts of store",
  ],
  [
    "a package that is missing in the diagram",
    "undrawn/x.ts",
    ``,
    "lib/undrawn/x.ts: its package is not in the diagram",
  ],
  [
    "a second module that starts processes",
    "base/base.ts",
    `new Deno.Command("x");`,
    "lib/base/base.ts: names Deno.Command; use system/process.ts",
  ],
  [
    "an exit inside the library",
    "base/base.ts",
    `Deno.exit(1);`,
    "lib/base/base.ts: exits or prints; only the entry point may",
  ],
  [
    "output inside the library",
    "base/base.ts",
    `console.log(1);`,
    "lib/base/base.ts: exits or prints; only the entry point may",
  ],
];

for (const [name, file, text, violation] of VIOLATIONS) {
  Deno.test(`findRuleViolations() reports ${name}`, async () => {
    // An import that is wrong may also close a cycle.
    assertEquals((await violationsIn({ [file]: text }))[0], violation);
  });
}

Deno.test("findRuleViolations() reports an arrow that the architecture diagram has twice", async () => {
  assertEquals(await violationsIn({}, `${DIAGRAM}  top --> base & store\n`), [
    "the diagram has top → base twice",
    "the diagram has top → store twice",
  ]);
});

Deno.test("findRuleViolations() reports a package of the architecture diagram that does not exist", async () => {
  assertEquals(await violationsIn({}, `${DIAGRAM}  top --> missing\n`), [
    "the diagram has missing: no such package",
  ]);
});

Deno.test("findRuleViolations() reports import cycles of files and of packages", async () => {
  const files = {
    "base/base.ts": `import "../top/top.ts";`,
  };
  assertEquals(await violationsIn(files, `${DIAGRAM}  base --> top\n`), [
    "import cycle: top/top.ts → base/base.ts → top/top.ts",
    "import cycle: top → base → top",
  ]);
});
