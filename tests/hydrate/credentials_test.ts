import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { runProcess } from "../../lib/system/process.ts";
import { foundTools, requires } from "../support/parts.ts";
import {
  PASSWORD,
  type Registry,
  startRegistry,
  USERNAME,
} from "../support/registry.ts";
import { startTunnel } from "../support/tunnel.ts";
import {
  cleanEnvironment,
  jsonLines,
  publishImage,
  type Workspace,
  workspace,
} from "../support/workspace.ts";

const REAL = requires("oras", "registry", "qemuImg", "openssl");

/** Logs in with oras, into a Docker configuration of this test. */
async function login(registry: Registry, work: Workspace) {
  const docker = join(work.dir, "docker");
  await Deno.mkdir(docker);
  const { code, stderr } = await runProcess(foundTools.oras!, {
    args: ["login", ...registry.orasFlags, registry.host].concat(
      ["-u", USERNAME, "--password-stdin"],
    ),
    input: PASSWORD,
    env: { DOCKER_CONFIG: docker },
  });
  assertEquals(code, 0, stderr);
  return { DOCKER_CONFIG: docker };
}

for (const auth of ["basic", "token"] as const) {
  Deno.test({
    name:
      `hydrate authenticates to a registry with ${auth} authentication with oras's credentials`,
    ...REAL,
    async fn() {
      await using registry = await startRegistry({ auth });
      await using work = await workspace();
      const env = await login(registry, work);
      await publishImage(registry, work, { env });

      const refused = await work.toolsmith(["hydrate", "--retries", "0"]);
      assertMatch(refused.stderr, /Unauthorized/);
      assertMatch(refused.stderr, /hint: log in first: oras login 127/);
      assertEquals([refused.code, refused.stdout], [30, ""]);

      const pulled = await work.toolsmith(["hydrate"], { env });
      assertEquals(pulled.code, 0, pulled.stderr);
      assert(!(pulled.stdout + pulled.stderr).includes(PASSWORD));
    },
  });
}

Deno.test({
  name: "hydrate trusts a private certificate authority only with --ca-file",
  ...REAL,
  async fn() {
    await using registry = await startRegistry({ tls: true });
    await using work = await workspace();
    await publishImage(registry, work);

    const plain = await work.toolsmith(["hydrate", "--retries", "0"]);
    assertEquals(plain.code, 35, plain.stderr);
    assertMatch(plain.stderr, /TLS|HTTPS/);

    const ca = ["--ca-file", registry.caFile!];
    const trusted = await work.toolsmith(["hydrate", ...ca]);
    assertEquals(trusted.code, 0, trusted.stderr);

    await using other = await startRegistry({ tls: true });
    const wrong = ["--ca-file", other.caFile!, "--retries", "0", "--force"];
    const foreign = await work.toolsmith(["hydrate", ...wrong]);
    assertEquals(foreign.code, 35);
    assertMatch(foreign.stderr, /--ca-file/);
  },
});

/** Writes a Docker configuration, and returns the environment that names it. */
async function configured(work: Workspace, text: string) {
  const docker = join(work.dir, "docker");
  await Deno.mkdir(docker, { recursive: true });
  await Deno.writeTextFile(join(docker, "config.json"), text);
  return { DOCKER_CONFIG: docker };
}

Deno.test({
  name:
    "hydrate and publish accept an empty Docker configuration as no configuration",
  ...REAL,
  async fn() {
    await using registry = await startRegistry();
    await using work = await workspace();
    await publishImage(registry, work);
    for (const text of ["", " \n"]) {
      const env = await configured(work, text);
      const { code, stderr } = await work.toolsmith(
        ["hydrate", "--force", "--retries", "0"],
        { env },
      );
      assertEquals(code, 0, stderr);
      const reference = `${registry.host}/owner/image:2.0`;
      const published = await work.toolsmith(
        ["publish", "image.qcow2", reference],
        { env, permissions: ["-A"] },
      );
      assertEquals(published.code, 0, published.stderr);
    }
  },
});

Deno.test({
  name:
    "hydrate reports malformed Docker configuration with line and column, and does not retry",
  ...REAL,
  async fn() {
    await using registry = await startRegistry();
    await using work = await workspace();
    await publishImage(registry, work);
    const env = await configured(work, '{\n  "auths": {');
    const { code, stdout } = await work.toolsmith(["hydrate", "--json"], {
      env,
    });
    const { events, last } = jsonLines(stdout);
    assertEquals([code, last.code], [14, "file_unreadable"]);
    assertMatch(last.message, /docker.config\.json:2:13: not JSON: Expected/);
    assertEquals(events.filter(({ type }) => type === "retry"), []);
  },
});

for (const auth of ["basic", "token"] as const) {
  Deno.test({
    name:
      `hydrate names a failing credential helper and runs it once, with ${auth} authentication`,
    ...REAL,
    ignore: REAL.ignore || Deno.build.os === "windows",
    async fn() {
      await using registry = await startRegistry({ auth });
      await using work = await workspace();
      const known = await login(registry, work);
      await publishImage(registry, work, { env: known });
      await Deno.writeTextFile(
        join(work.dir, "docker-credential-vault"),
        `#!/bin/sh
echo asked >> '${work.dir}/calls'
echo 'dial tcp 10.0.0.1:8200: connect: connection refused'; exit 1
`,
        { mode: 0o755 },
      );
      const env = await configured(work, '{"credsStore":"vault"}');
      const { PATH } = cleanEnvironment();
      const { code, stdout } = await work.toolsmith(["hydrate", "--json"], {
        env: { ...env, PATH: `${work.dir}:${PATH}` },
      });
      const { events, last } = jsonLines(stdout);
      assertEquals([code, last.code], [23, "credentials_failed"]);
      assertEquals(
        last.message,
        `Cannot get credentials for ${registry.host}: docker-credential-vault failed: dial tcp 10.0.0.1:8200: connect: connection refused`,
      );
      assertMatch(last.hint, /echo 127\S+ \| docker-credential-vault get; /);
      assertEquals(events.filter(({ type }) => type === "retry"), []);
      const calls = await Deno.readTextFile(join(work.dir, "calls"));
      assertEquals(calls, "asked\n");
    },
  });
}

/** A registry that oras reaches as ghcr.io, and a log of each oras run. */
async function ghcrHost(work: Workspace) {
  await using undo = new AsyncDisposableStack();
  const registry = undo.use(
    await startRegistry({ tls: true, auth: "token", names: ["ghcr.io"] }),
  );
  const tunnel = undo.use(startTunnel({ "ghcr.io:443": registry.host }));
  const bin = join(work.dir, "bin");
  const notes = join(work.dir, "notes");
  await Deno.mkdir(bin);
  await Deno.writeTextFile(
    join(bin, "oras"),
    `#!/bin/sh
{ printf '%s\\n' "$@"; env; } >> '${notes}'
exec '${foundTools.oras}' "$@"
`,
    { mode: 0o755 },
  );
  const all = undo.move();
  return {
    registry,
    /** Hosts that were requested through the tunnel. */
    asked: tunnel.asked,
    /** Arguments and environment of each oras so far. */
    notes: () => Deno.readTextFile(notes),
    hydrate: (env: Record<string, string>, ...args: string[]) =>
      work.toolsmith(
        ["hydrate", "--force", "--ca-file", registry.caFile!, ...args],
        {
          env: {
            ...tunnel.env,
            PATH: `${bin}:${Deno.env.get("PATH")}`,
            ...env,
          },
        },
      ),
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

Deno.test({
  name:
    "hydrate sends GHCR_TOKEN to ghcr.io only, and leaks it to no process, file or other host",
  ...REAL,
  async fn(t) {
    await using work = await workspace();
    await using ghcr = await ghcrHost(work);
    const docker = await login(ghcr.registry, work);
    const { sha256, reference } = await publishImage(ghcr.registry, work, {
      env: docker,
      host: "ghcr.io",
    });

    for (const user of ["GHCR_USERNAME", "GITHUB_ACTOR"]) {
      await t.step(
        `hydrate sends GHCR_TOKEN to ghcr.io as ${user}`,
        async () => {
          const { code, stdout, stderr } = await ghcr.hydrate({
            [user]: USERNAME,
            GHCR_TOKEN: PASSWORD,
            ACTIONS_RUNTIME_TOKEN: `${PASSWORD} of a job`,
            GH_TOKEN: `${PASSWORD} of gh`,
          });
          assertEquals(code, 0, stderr);
          const seen = await ghcr.notes() + stdout + stderr;
          assertMatch(seen, /^--password-stdin$/m);
          assert(
            !seen.includes(PASSWORD),
            "the token is in argv or environment",
          );
          assertEquals(await holds(work.dir, PASSWORD), []);
        },
      );
    }

    await t.step(
      "hydrate rejects a wrong GHCR_TOKEN without printing the token",
      async () => {
        const token = "ghp_wrong0token";
        const { code, stderr } = await ghcr.hydrate(
          { GHCR_USERNAME: USERNAME, GHCR_TOKEN: token },
          ...["--retries", "0"],
        );
        assertEquals(code, 30, stderr);
        assertMatch(stderr, /Unauthorized/);
        assertMatch(stderr, /hint: .*GHCR_TOKEN.*read:packages/);
        assert(!stderr.includes(token));
      },
    );

    await t.step(
      "hydrate warns that GHCR_TOKEN is unused without a user name",
      async () => {
        const { code, stderr } = await ghcr.hydrate(
          { GHCR_TOKEN: PASSWORD },
          ...["--retries", "0"],
        );
        assertEquals(code, 30);
        assertMatch(stderr, /warning: GHCR_TOKEN is not used/);
      },
    );

    await t.step(
      "hydrate refuses to send GHCR_TOKEN over plain HTTP",
      async () => {
        const before = await ghcr.notes();
        for (const qcow2 of [reference, reference.replace("ghcr", "GHCR")]) {
          await work.manifest({
            qcow2: `oci://${qcow2}`,
            qcow2_sha256: sha256,
          });
          const { code, stderr } = await ghcr.hydrate(
            { GHCR_USERNAME: USERNAME, GHCR_TOKEN: PASSWORD },
            "--plain-http",
          );
          assertEquals(code, 2, stderr);
          assertMatch(stderr, /Cannot send GHCR_TOKEN to .* over plain HTTP/i);
        }
        assertEquals(await ghcr.notes(), before, "oras was started");
      },
    );

    await t.step(
      "hydrate does not send GHCR_TOKEN to another registry",
      async () => {
        const elsewhere = reference.replace("ghcr.io", ghcr.registry.host);
        const qcow2 = `oci://${elsewhere}`;
        await work.manifest({ qcow2, qcow2_sha256: sha256 });
        const env = { GHCR_USERNAME: USERNAME, GHCR_TOKEN: PASSWORD };
        assertEquals((await ghcr.hydrate(env)).code, 30);
      },
    );
    // The other registry gets only an anonymous request for its schemes.
    const others = ghcr.asked.filter((host) => host !== ghcr.registry.host);
    assertEquals([...new Set(others)], ["ghcr.io:443"]);
  },
});

/** A plain-HTTP proxy that records requested hosts and received credentials. */
function startPlainHosts(challenge: string) {
  const asked: string[] = [];
  const shown: string[] = [];
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    ({ url, headers }) => {
      asked.push(new URL(url).host);
      const known = headers.get("authorization");
      if (known !== null) shown.push(`${url}: ${known}`);
      return new Response(null, {
        status: 401,
        headers: { "www-authenticate": challenge },
      });
    },
  );
  const proxy = `http://127.0.0.1:${server.addr.port}`;
  return {
    env: { HTTP_PROXY: proxy, http_proxy: proxy },
    asked,
    shown,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}

const CHALLENGES = {
  Basic: 'Basic realm="x"',
  Bearer: 'Bearer realm="http://auth.example/token",service="x"',
};

for (const [scheme, challenge] of Object.entries(CHALLENGES)) {
  Deno.test({
    name:
      `hydrate sends no credentials over plain HTTP when challenged for ${scheme}`,
    ...REAL,
    async fn(t) {
      await using work = await workspace();
      await using ghcr = await ghcrHost(work);
      await using plain = startPlainHosts(challenge);
      const docker = await login(ghcr.registry, work);
      const { sha256 } = await publishImage(ghcr.registry, work, {
        env: docker,
        host: "ghcr.io",
      });
      const token = { GHCR_USERNAME: USERNAME, GHCR_TOKEN: PASSWORD };
      const config = join(work.dir, "certs.d");
      await Deno.mkdir(join(config, "ghcr.io"), { recursive: true });
      await Deno.writeTextFile(
        join(config, "ghcr.io", "hosts.toml"),
        '[host."http://registry.lan:5000"]',
      );
      const host = "registry.lan:5000";
      const auths = { [host]: { auth: btoa(`${USERNAME}:${PASSWORD}`) } };
      await Deno.writeTextFile(
        join(work.dir, "docker", "config.json"),
        JSON.stringify({ auths }),
      );
      const mirrors: [string, string, Record<string, string>][] = [
        ["TOOLSMITH_MIRRORS", "ghcr.io", {
          TOOLSMITH_MIRRORS: "ghcr.io=http://ghcr.io",
        }],
        ["hosts.toml", host, { TOOLSMITH_REGISTRY_CONFIG: config }],
      ];
      for (const [who, mirror, env] of mirrors) {
        await t.step(
          `hydrate sends no credentials to a plain-HTTP mirror from ${who}`,
          async () => {
            const known = { ...docker, ...token, ...plain.env };
            const { code, stderr } = await ghcr.hydrate({ ...known, ...env });
            assertEquals(code, 0, stderr);
            assertMatch(stderr, /credentials are not sent over plain HTTP/);
            assert(plain.asked.includes(mirror), "the mirror was not asked");
          },
        );
      }
      await t.step(
        "hydrate --plain-http sends no credentials to the registry",
        async () => {
          const qcow2 = `oci://${host}/owner/image:1.0`;
          await work.manifest({ qcow2, qcow2_sha256: sha256 });
          const { code, stderr } = await work.toolsmith(
            ["hydrate", "--force", "--plain-http", "--retries", "0"],
            { env: { ...plain.env, ...docker } },
          );
          assertEquals(code, 30, stderr);
          assertMatch(
            stderr,
            /http:\/\/registry\.lan:5000: credentials are not/,
          );
          assertMatch(stderr, /hint: serve the registry over HTTPS/);
        },
      );
      assertEquals(plain.shown, []);
    },
  });
}

Deno.test("hydrate reports that oras is not found, with install instructions", async () => {
  await using work = await workspace();
  await work.manifest({
    qcow2: "oci://127.0.0.1:1/owner/image:1.0",
    qcow2_sha256: "0".repeat(64),
  });
  const nowhere = { PATH: "/nonexistent" };
  const permissions = ["-A"];
  const missing = await work.toolsmith(["hydrate"], {
    env: nowhere,
    permissions,
  });
  assertEquals(missing.code, 20);
  assertMatch(missing.stderr, /oras not found/);
  assertMatch(missing.stderr, /install ORAS.*TOOLSMITH_ORAS/);

  const named = { ...nowhere, TOOLSMITH_ORAS: "/no/oras" };
  const wrong = await work.toolsmith(["hydrate"], { env: named, permissions });
  assertEquals(wrong.code, 20);
  assertMatch(wrong.stderr, /oras not found: \/no\/oras/);
});

Deno.test("hydrate exits with status 22 when a Deno permission is missing", async () => {
  await using work = await workspace();
  await work.manifest({
    qcow2: "oci://127.0.0.1:1/owner/image:1.0",
    qcow2_sha256: "0".repeat(64),
  });
  const { code, stderr } = await work.toolsmith(["hydrate", "--json"], {
    permissions: [
      "--allow-read",
      "--allow-write",
      "--allow-env",
      "--no-prompt",
    ],
  });
  assertEquals([code, stderr], [22, ""]);
});

/** Returns the files below a directory that contain a text. */
async function holds(dir: string, text: string): Promise<string[]> {
  const found: string[] = [];
  for await (const { name, isDirectory } of Deno.readDir(dir)) {
    const path = join(dir, name);
    // The Docker configuration of the test itself contains the password.
    if (name === "docker") continue;
    if (isDirectory) found.push(...await holds(path, text));
    else if ((await Deno.readTextFile(path)).includes(text)) found.push(path);
  }
  return found;
}
