import { assert, assertEquals } from "@std/assert";
import { ROOT } from "../../scripts/deno.ts";

Deno.test("every promise of docs/security.md is held by a test that exists", async () => {
  const page = await Deno.readTextFile(`${ROOT}/docs/security.md`);
  const promises = [...page.matchAll(/`(tests\/[^`]+)`: "(.+?)" +\|$/gm)];
  assert(promises.length > 20, `${promises.length}`);
  const missing: string[] = [];
  for (const [, path, name] of promises) {
    const text = await Deno.readTextFile(`${ROOT}/${path}`).catch(() => "");
    // A name is a string, or a template that makes one for each case.
    if (!text.includes(`"${name}"`) && !text.includes(`\`${name}\``)) {
      missing.push(`${path}: ${name}`);
    }
  }
  assertEquals(missing, []);
});
