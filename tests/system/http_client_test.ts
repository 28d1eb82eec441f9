import { assertEquals, assertStringIncludes } from "@std/assert";
import { httpClient } from "../../lib/system/http_client.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { runScript } from "../support/script.ts";

Deno.test("a client without an authority of one's own needs no file", async () => {
  (await httpClient(undefined)).close();
});

Deno.test("an authority that is not there, or none at all, is told by its path and its flag", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/ca.pem`;
  const missing = await failure("file_unreadable", () => httpClient(path));
  assertStringIncludes(
    missing.message,
    `Cannot read the certificate authority ${path}: No such file`,
  );
  assertEquals(missing.hint, "check the path in --ca-file");
  await Deno.writeTextFile(
    path,
    "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
  );
  const odd = await failure("tls_failed", () => httpClient(path));
  assertStringIncludes(
    odd.message,
    `Cannot use the certificate authority ${path}: `,
  );
  assertEquals(odd.hint, "--ca-file takes a PEM file");
});

Deno.test("a permission that is missing stays one", async () => {
  await using dir = await temporaryDir();
  const script = `
    import { httpClient } from "/lib/system/http_client.ts";
    await httpClient("/none/ca.pem").catch(({ name }) => console.log(name));
  `;
  const said = await runScript(`${dir.path}/client.ts`, script, {
    permissions: ["--deny-read=/none"],
  });
  assertEquals(said, "NotCapable\n");
});
