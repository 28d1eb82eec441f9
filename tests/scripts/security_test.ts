import { assert, assertEquals } from "@std/assert";
import { PROJECT_ROOT } from "../../scripts/deno.ts";

Deno.test("docs/security.md names an existing test for every promise", async () => {
  const page = await Deno.readTextFile(`${PROJECT_ROOT}/docs/security.md`);
  const promises = [...page.matchAll(/`(tests\/[^`]+)`: "(.+?)" +\|$/gm)];
  assert(promises.length > 20, `${promises.length}`);
  const missing: string[] = [];
  for (const [, path, name] of promises) {
    const text = await Deno.readTextFile(`${PROJECT_ROOT}/${path}`).catch(() =>
      ""
    );
    // A test name is a string, or a template for several cases.
    if (!text.includes(`"${name}"`) && !text.includes(`\`${name}\``)) {
      missing.push(`${path}: ${name}`);
    }
  }
  assertEquals(missing, []);
});
