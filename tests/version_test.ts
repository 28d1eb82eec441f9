import { assertEquals } from "@std/assert";
import { VERSION } from "../lib/version.ts";
import { ROOT } from "../scripts/deno.ts";

Deno.test("the program's version is the package's", async () => {
  const { version } = JSON.parse(await Deno.readTextFile(`${ROOT}/deno.json`));
  assertEquals(VERSION, version);
});
