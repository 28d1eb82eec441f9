import { assertEquals, assertStringIncludes } from "@std/assert";
import { createHttpClient } from "../../lib/system/http_client.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { runScript } from "../support/script.ts";

Deno.test("createHttpClient() reads no file without a private CA", async () => {
  (await createHttpClient(undefined))[Symbol.dispose]();
});

Deno.test("createHttpClient() reports a missing or invalid CA file with its path and --ca-file", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/ca.pem`;
  const missing = await expectFailure(
    "file_unreadable",
    () => createHttpClient(path),
  );
  assertStringIncludes(
    missing.message,
    `Cannot read the certificate authority ${path}: no such file`,
  );
  assertEquals(missing.hint, "check the path in --ca-file");
  await Deno.writeTextFile(
    path,
    "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
  );
  const odd = await expectFailure("tls_failed", () => createHttpClient(path));
  assertStringIncludes(
    odd.message,
    `Cannot use the certificate authority ${path}: `,
  );
  assertEquals(odd.hint, "pass a PEM file to --ca-file");
});

Deno.test("createHttpClient() throws NotCapable unchanged when a Deno permission is missing", async () => {
  await using dir = await temporaryDir();
  const script = `
    import { createHttpClient } from "/lib/system/http_client.ts";
    await createHttpClient("/none/ca.pem").catch(({ name }) => console.log(name));
  `;
  const said = await runScript(`${dir.path}/client.ts`, script, {
    permissions: ["--deny-read=/none"],
  });
  assertEquals(said, "NotCapable\n");
});

/** Requests https://far.test/ with these variables; returns error and variables. */
async function requestWithEnv(env: Record<string, string>): Promise<string[]> {
  await using dir = await temporaryDir();
  const script = `
    import { createHttpClient } from "/lib/system/http_client.ts";
    const env = ${JSON.stringify(env)};
    for (const [name, text] of Object.entries(env)) Deno.env.set(name, text);
    using client = await createHttpClient(undefined);
    const { signal } = new AbortController();
    await client.fetch(new URL("https://far.test/"), { signal })
      .catch(({ code, message }) => console.log(code + " " + message));
    const after = Object.keys(env).map((name) => [name, Deno.env.get(name)]);
    console.log(JSON.stringify(Object.fromEntries(after)));
  `;
  const said = await runScript(`${dir.path}/client.ts`, script);
  return said.trimEnd().split("\n");
}

Deno.test("createHttpClient() authenticates with the proxy, and restores the environment variables", async () => {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const host = `127.0.0.1:${listener.addr.port}`;
  const heard = (async () => {
    using connection = await listener.accept();
    const bytes = new Uint8Array(4096);
    const size = await connection.read(bytes) ?? 0;
    return new TextDecoder().decode(bytes.subarray(0, size));
  })();
  const env = {
    HTTPS_PROXY: `http://user:p%40ss@${host}`,
    ALL_PROXY: "http://127.0.0.1:9",
    NO_PROXY: "near.test",
  };
  const [error, after] = await requestWithEnv(env);
  const head = await heard;
  listener.close();
  assertStringIncludes(head, "CONNECT far.test:443 HTTP/1.1\r\n");
  const login = /proxy-authorization: Basic (\S+)/i.exec(head)?.[1];
  assertEquals(atob(login ?? ""), "user:p@ss");
  assertStringIncludes(error, `far.test through the proxy ${host}: `);
  assertEquals(JSON.parse(after), env);
});

Deno.test("createHttpClient() rejects a proxy with an unknown scheme, without showing its password", async () => {
  const [error] = await requestWithEnv({
    HTTPS_PROXY: "ftp://user:secret@x.test:1",
  });
  assertEquals(error, "usage Cannot use the proxy ftp://x.test:1");
});
