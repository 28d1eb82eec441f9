import { assertEquals } from "@std/assert";
import type { Environment } from "../lib/environment.ts";
import { temporaryDir } from "./support/directory.ts";
import { runScript } from "./support/script.ts";

const SCRIPT = `
  import { processEnvironment as env } from "/lib/environment.ts";
  console.log(env.get("PATH") !== undefined, env.get("TOOLSMITH_CACHE"));
`;

Deno.test("processEnvironment returns undefined for a variable that is unset or not permitted", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/env.ts`;
  const said = (...permissions: string[]) =>
    runScript(path, SCRIPT, { permissions });
  assertEquals(await said("--allow-env"), "true undefined\n");
  assertEquals(await said("--allow-env=PATH"), "true undefined\n");
  assertEquals(await said(), "false undefined\n");
});

Deno.test("processEnvironment treats an empty variable as unset", async () => {
  await using dir = await temporaryDir();
  const code = `Deno.env.set("TOOLSMITH_CACHE", "");${SCRIPT}`;
  assertEquals(
    await runScript(`${dir.path}/env.ts`, code),
    "true undefined\n",
  );
});

Deno.test("Environment accepts a Map and Deno.env", () => {
  const environments: Environment[] = [new Map([["A", "1"]]), Deno.env];
  assertEquals(environments[0].get("A"), "1");
});
