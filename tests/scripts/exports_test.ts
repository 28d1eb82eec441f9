/**
 * Tests the public entry points in deno.json.
 */
import { assertEquals } from "@std/assert";
import config from "../../deno.json" with { type: "json" };
import { PROJECT_ROOT } from "../../scripts/deno.ts";

const EXAMPLE = /^ \* ```ts.*\n((?: \*.*\n)*?) \* ```$/gm;

/** The code of all examples in lib/ and the entry points. */
function examples(path: string): string {
  if (Deno.statSync(path).isDirectory) {
    const names = Array.from(Deno.readDirSync(path), ({ name }) => name);
    return names.map((name) => examples(`${path}/${name}`)).join("\n");
  }
  const text = Deno.readTextFileSync(path);
  return Array.from(text.matchAll(EXAMPLE), ([, code]) => code).join("\n");
}

Deno.test("deno.json exports: an example names each function and value, and only one entry exports it", async () => {
  const code = ["mod.ts", "cli.ts", "lib"]
    .map((path) => examples(`${PROJECT_ROOT}/${path}`)).join("\n");
  const names: string[] = [];
  for (const path of Object.values(config.exports)) {
    names.push(...Object.keys(await import(`${PROJECT_ROOT}/${path}`)));
  }
  const missing = names.filter((name) =>
    !new RegExp(`\\b${name}\\b`).test(code)
  );
  assertEquals(missing, []);
  assertEquals(names.length, new Set(names).size);
});
