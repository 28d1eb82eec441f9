/**
 * Registries that offer another authentication scheme before Basic, such as
 * Negotiate behind a company's proxy: oras tries only the first.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { requires } from "../support/parts.ts";
import { type FaultyProxy, startProxy } from "../support/proxy.ts";
import {
  PASSWORD,
  type RegistryOptions,
  startRegistry,
  USERNAME,
} from "../support/registry.ts";
import { jsonLines, publishImage, workspace } from "../support/workspace.ts";

const REAL = requires("oras", "registry", "qemuImg", "openssl");

/** A registry behind a proxy that rewrites its challenges, and a manifest for it. */
async function site(
  auth: RegistryOptions["auth"],
  challenge: (own: string) => string,
) {
  await using undo = new AsyncDisposableStack();
  const registry = undo.use(await startRegistry({ auth }));
  const proxy = undo.use(startProxy(registry.host));
  const work = undo.use(await workspace());
  const docker = join(work.dir, "docker");
  await Deno.mkdir(docker);
  const login = async (password: string) => {
    const entry = { auth: btoa(`${USERNAME}:${password}`) };
    const auths = { [registry.host]: entry, [proxy.host]: entry };
    await Deno.writeTextFile(
      join(docker, "config.json"),
      JSON.stringify({ auths }),
    );
  };
  await login(PASSWORD);
  const env = { DOCKER_CONFIG: docker };
  await publishImage(registry, work, { env, host: proxy.host });
  proxy.faults.push({ match: /./, challenge });
  const all = undo.move();
  return {
    proxy: proxy as FaultyProxy,
    work,
    login,
    run: async (args: string[], permissions?: string[]) => {
      const output = await work.toolsmith(args, { env, permissions });
      assert(!(output.stdout + output.stderr).includes(PASSWORD));
      return output;
    },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

for (const auth of ["basic", "token"] as const) {
  Deno.test({
    name:
      `hydrate authenticates to a registry that offers Negotiate before ${auth}`,
    ...REAL,
    async fn() {
      await using all = await site(auth, (own) => `Negotiate, ${own}`);
      const { code, stdout, stderr } = await all.run(["hydrate", "--json"]);
      const { events, last } = jsonLines(stdout);
      assertEquals([code, last.outcome], [0, "pulled"], stdout + stderr);
      assertEquals(
        events.filter(({ type }) => /retry|ranges|warning/.test(type)),
        [],
      );
    },
  });
}

Deno.test({
  name:
    "hydrate and publish explain failed logins to a registry that offers Negotiate; init and doctor succeed",
  ...REAL,
  async fn(t) {
    await using all = await site("basic", (own) => `Negotiate, ${own}`);
    const { host } = all.proxy;

    await t.step(
      "publish explains that oras tries only the first scheme",
      async () => {
        const { code, stderr } = await all.run(
          ["publish", "image.qcow2", `${host}/owner/image:2.0`],
          ["-A"],
        );
        assertEquals(code, 30, stderr);
        assertMatch(
          stderr,
          /the registry offers Negotiate, Basic, and oras tries only the first authentication scheme/,
        );
        assertMatch(
          stderr,
          /hint: configure the registry to offer Basic or Bearer authentication first/,
        );
      },
    );

    await t.step("init and doctor authenticate without oras", async () => {
      const reference = `${host}/owner/image:1.0`;
      const args = ["init", "--ref", reference, "--manifest", "other.json"];
      const made = await all.run(args);
      assertEquals(made.code, 0, made.stderr);
      const seen = await all.run(["doctor"], ["-A"]);
      assertMatch(seen.stdout + seen.stderr, /registry +serves sha256:/);
    });

    await t.step("init reports a missing tag as not found", async () => {
      const args = ["init", "--ref", `${host}/owner/image:none`];
      const { code, stderr } = await all.run([...args, "--manifest", "x.json"]);
      assertEquals(code, 32, stderr);
    });

    await t.step("hydrate reports a wrong password", async () => {
      await all.login("wr0ng");
      const { code, stderr } = await all.run(["hydrate", "--retries", "0"]);
      assertEquals(code, 30, stderr);
      assertMatch(
        stderr,
        /offers Negotiate, Basic, and the request with a login failed: the server answered 401/,
      );
      assertMatch(stderr, /hint: store valid credentials: docker login 127/);
      assert(!stderr.includes("wr0ng"));
    });

    await t.step(
      "hydrate reports that no offered scheme is supported",
      async () => {
        const [fault] = all.proxy.faults;
        Object.assign(fault, { challenge: () => "Negotiate, Digest realm=x" });
        const { code, stderr } = await all.run(["hydrate", "--retries", "0"]);
        assertEquals(code, 30, stderr);
        assertMatch(
          stderr,
          /offers Negotiate, Digest, and only Basic and Bearer authentication is supported/,
        );
      },
    );

    await t.step(
      "hydrate reports oras's own error for a standard challenge",
      async () => {
        all.proxy.faults.splice(0);
        const { code, stderr } = await all.run(["hydrate", "--retries", "0"]);
        assertEquals(code, 30, stderr);
        assertMatch(stderr, /Unauthorized: no access to \S+ \(oras: /);
      },
    );
  },
});
