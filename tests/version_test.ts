import { assertEquals } from "@std/assert";
import { VERSION } from "../lib/version.ts";
import { PROJECT_ROOT } from "../scripts/deno.ts";

Deno.test("VERSION equals the version in deno.json", async () => {
  const { version } = JSON.parse(
    await Deno.readTextFile(`${PROJECT_ROOT}/deno.json`),
  );
  assertEquals(VERSION, version);
});
