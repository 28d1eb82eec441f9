/**
 * Tests the test registry: the real oras pushes to and pulls from each kind.
 */
import { assertEquals, assertMatch } from "@std/assert";
import { runProcess } from "../../lib/system/process.ts";
import { foundTools, requires } from "./parts.ts";
import {
  PASSWORD,
  type Registry,
  type RegistryOptions,
  startRegistry,
  USERNAME,
} from "./registry.ts";

const CONTENT = "some bytes\n";

/** Runs oras with one small file in a temporary directory. */
async function oras(
  registry: Registry,
  command: "push" | "pull",
  password?: string,
) {
  const dir = await Deno.makeTempDir();
  try {
    if (command === "push") {
      await Deno.writeTextFile(`${dir}/file.txt`, CONTENT);
    }
    const user = password === undefined
      ? []
      : ["-u", USERNAME, "--password-stdin"];
    // A developer's own logins must not reach the test.
    await Deno.writeTextFile(`${dir}/config.json`, "{}");
    const output = await runProcess(foundTools.oras!, {
      cwd: dir,
      args: [
        command,
        ...registry.orasFlags,
        ...user,
        "--registry-config",
        `${dir}/config.json`,
        "--no-tty",
        `${registry.host}/owner/image:v1`,
        ...(command === "push" ? ["file.txt"] : []),
      ],
      input: password,
      timeoutMs: 600_000,
    });
    const content = await Deno.readTextFile(`${dir}/file.txt`)
      .catch(() => "");
    return { ...output, content };
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

const kinds: Record<string, RegistryOptions> = {
  "public": {},
  "with a password": { auth: "basic" },
  "with tokens": { auth: "token" },
  "over HTTPS": { tls: true },
  "over HTTPS with tokens": { auth: "token", tls: true, names: ["ghcr.io"] },
};

for (const [kind, options] of Object.entries(kinds)) {
  Deno.test({
    name: `startRegistry(): oras pushes to and pulls from a registry ${kind}`,
    ...requires("oras", "registry", "openssl"),
    async fn() {
      await using registry = await startRegistry(options);
      const password = options.auth ? PASSWORD : undefined;
      const pushed = await oras(registry, "push", password);
      assertEquals(pushed.code, 0, pushed.stderr);
      const pulled = await oras(registry, "pull", password);
      assertEquals(pulled.content, CONTENT, pulled.stderr);
      if (!options.auth) return;
      const wrong = await oras(registry, "pull", "wrong");
      assertEquals(wrong.code, 1);
      assertMatch(wrong.stderr, /unauthorized|status code 401/);
      const nobody = await oras(registry, "pull");
      assertEquals(nobody.code, 1);
    },
  });
}

Deno.test({
  name: "startRegistry() with tokens authorizes pull and push separately",
  ...requires("oras", "registry", "openssl"),
  async fn() {
    for (const push of ["withheld", "denied"] as const) {
      await using registry = await startRegistry({ auth: "token", push });
      const pushed = await oras(registry, "push", PASSWORD);
      assertEquals(pushed.code, 1);
      const says = push === "denied" ? /denied:/ : /unauthorized:/;
      assertMatch(pushed.stderr, says);
      // Nothing was pushed, but asking is allowed.
      const pulled = await oras(registry, "pull", PASSWORD);
      assertMatch(pulled.stderr, /not found/);
    }
  },
});

Deno.test({
  name: "startRegistry() with tokens serves a public package without login",
  ...requires("oras", "registry", "openssl"),
  async fn() {
    await using registry = await startRegistry({
      auth: "token",
      anonymousPull: true,
    });
    assertEquals((await oras(registry, "push")).code, 1);
    assertEquals((await oras(registry, "push", PASSWORD)).code, 0);
    assertEquals((await oras(registry, "pull")).content, CONTENT);
  },
});

Deno.test({
  name:
    "startRegistry(): a stopped registry refuses connections and leaves nothing behind",
  ...requires("oras", "registry"),
  async fn() {
    const registry = await startRegistry();
    await oras(registry, "push");
    await registry.stop();
    const pulled = await oras(registry, "pull");
    assertMatch(pulled.stderr, /connection refused/);
    assertEquals((await Deno.stat(registry.storage)).isDirectory, true);
    await registry[Symbol.asyncDispose]();
    assertEquals(
      await Deno.stat(registry.storage).catch(() => "gone"),
      "gone",
    );
  },
});
