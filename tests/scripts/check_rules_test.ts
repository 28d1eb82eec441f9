import { assertEquals } from "@std/assert";
import { breaches } from "../../scripts/check_rules.ts";
import { ROOT } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";

const PICTURE = `
  cli --> top & base
  top -- door --> store
  top --> base
`;

const GOOD = {
  "../mod.ts": `export * from "./lib/top/top.ts";\n`,
  "../cli.ts": `import "./lib/cli/main.ts";\n`,
  "ground.ts": `export const ground = 1;\n`,
  "system/process.ts": `new Deno.Command("x");\n`,
  "base/base.ts": `import { ground } from "../ground.ts";\n`,
  "base/_own.ts":
    `/**\n * import "../top/top.ts"; console.log(); new Deno.Command();\n */\n// Deno.exit()\n`,
  "store/door.ts": `import { own } from "./_console.ts";\n`,
  "store/_console.ts": ``,
  "store/other.ts": ``,
  "top/top.ts":
    `import {\n  base,\n} from "../base/base.ts";\nimport "../store/door.ts";\n`,
  "cli/main.ts": `import "./commands/run.ts";\n`,
  "cli/commands/run.ts": `import { top } from "../../top/top.ts";\n`,
};

/** Finds what breaks the rules in a small tree that differs from a good one. */
async function found(files: Record<string, string>, picture = PICTURE) {
  await using dir = await temporaryDir();
  await Deno.mkdir(`${dir.path}/docs`);
  await Deno.writeTextFile(
    `${dir.path}/docs/architecture.md`,
    `${picture}  top --> system\n`,
  );
  for (const [name, text] of Object.entries({ ...GOOD, ...files })) {
    const path = `${dir.path}/lib/${name}`;
    await Deno.mkdir(path.slice(0, path.lastIndexOf("/")), { recursive: true });
    await Deno.writeTextFile(path, text);
  }
  return breaches(dir.path);
}

Deno.test("the code keeps the rules of docs/architecture.md", () => {
  assertEquals(breaches(ROOT), []);
});

Deno.test("a tree that keeps the rules has no breach", async () => {
  assertEquals(await found({}), []);
});

const BREACHES: [string, string, string, string][] = [
  [
    "an import without an arrow",
    "base/base.ts",
    `import { x } from "../store/door.ts";`,
    "lib/base/base.ts imports store/door.ts: no arrow leads from base to store",
  ],
  [
    "an import against an arrow",
    "base/base.ts",
    `import type { x } from "../cli/main.ts";`,
    "lib/base/base.ts imports cli/main.ts: no arrow leads from base to cli",
  ],
  [
    "an import of another room's own file",
    "top/top.ts",
    `import { x } from "../base/_own.ts";`,
    "lib/top/top.ts imports base/_own.ts: it belongs to base alone",
  ],
  [
    "an export of a room's own file by the library",
    "../mod.ts",
    `export * from "./lib/base/_own.ts";`,
    "lib/../mod.ts imports base/_own.ts: it belongs to base alone",
  ],
  [
    "an import of a room by the ground",
    "ground.ts",
    `const x = await import("./top/top.ts");`,
    "lib/ground.ts imports top/top.ts: what all rooms stand on imports none",
  ],
  [
    "an import past the one file that an arrow allows",
    "top/top.ts",
    `import "../store/other.ts";`,
    "lib/top/top.ts imports store/other.ts: top may import door.ts alone of store",
  ],
  [
    "a room that is not drawn",
    "attic/x.ts",
    ``,
    "lib/attic/x.ts: the picture has no room for it",
  ],
  [
    "a second place that starts processes",
    "base/base.ts",
    `new Deno.Command("x");`,
    "lib/base/base.ts: names Deno.Command; use system/process.ts",
  ],
  [
    "an exit inside the library",
    "base/base.ts",
    `Deno.exit(1);`,
    "lib/base/base.ts: exits or prints; that is for the entry point",
  ],
  [
    "output inside the library",
    "base/base.ts",
    `console.log(1);`,
    "lib/base/base.ts: exits or prints; that is for the entry point",
  ],
];

for (const [name, file, text, breach] of BREACHES) {
  Deno.test(`breaches() names ${name}`, async () => {
    // An import that is wrong may also close a circle.
    assertEquals((await found({ [file]: text }))[0], breach);
  });
}

Deno.test("breaches() names an arrow that is drawn twice", async () => {
  assertEquals(await found({}, `${PICTURE}  top --> base & store\n`), [
    "the picture has top → base twice",
    "the picture has top → store twice",
  ]);
});

Deno.test("breaches() names a room that is drawn and not there", async () => {
  assertEquals(await found({}, `${PICTURE}  top --> cellar\n`), [
    "the picture has cellar: no such room",
  ]);
});

Deno.test("breaches() names circles of files and of rooms", async () => {
  const files = {
    "base/base.ts": `import "../top/top.ts";`,
  };
  assertEquals(await found(files, `${PICTURE}  base --> top\n`), [
    "imports in a circle: top/top.ts → base/base.ts → top/top.ts",
    "imports in a circle: top → base → top",
  ]);
});
