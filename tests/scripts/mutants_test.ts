import { assert, assertEquals } from "@std/assert";
import { findMutants } from "../../scripts/mutants.ts";
import { PROJECT_ROOT } from "../../scripts/deno.ts";

const changes = (source: string) =>
  findMutants(source).map(({ before, after }) => `${before} → ${after}`).sort();

Deno.test("findMutants() finds each kind of change once", () => {
  const source = `
export async function f(a: number, b: string[]) {
  if (a < 3 && (b.length === 0)) return true;
  await g(a);
  throw new Error("x");
}
`;
  assertEquals(
    changes(source),
    [
      "(a < 3 && (b.length === 0)) → (!(a < 3 && (b.length === 0)))",
      "0 → 1",
      "3 → 4",
      "&& → ||",
      "< → <=",
      "=== → !==",
      "await → ",
      "await g(a); → ;",
      'throw new Error("x"); → ;',
      "true → false",
    ].sort(),
  );
});

Deno.test("findMutants() skips strings, comments and types", () => {
  const source = [
    'import { a } from "./1.ts";',
    "/** 1 === 2 */",
    "// if (a) await b();",
    "interface A {\n  /** Is it 3? */\n  a: true;\n}",
    "type B = 4 | 5;",
    "export type C = { a: false };",
    "const text = \"1 === 2\" + '3 && 4';",
    "const pattern = /[/1]{2,3} === /g;",
    "const template = `1 === ${f(`2 && ${g({})} 3`)} && 4`;",
    'export { x, y } from "./5.ts";',
  ].join("\n");
  assertEquals(changes(source), ["+ → -"]);
});

Deno.test("findMutants() changes code inside a template literal", () => {
  assertEquals(changes("const a = `x ${b === c ? `1` : d} 2`;"), ["=== → !=="]);
});

Deno.test("findMutants() changes one line of a real file per mutant", async () => {
  const source = await Deno.readTextFile(
    `${PROJECT_ROOT}/lib/cli/command_line.ts`,
  );
  const lines = source.split("\n");
  const found = findMutants(source);
  assert(found.length > 20, `${found.length}`);
  for (const { line, text, before } of found) {
    if (before.includes("\n")) continue;
    const changed = text.split("\n").flatMap((it, i) =>
      it === lines[i] ? [] : [i + 1]
    );
    assertEquals(changed, [line], before);
  }
});
