import { assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import {
  credentialHelperFor,
  readDockerConfigFile,
  readRegistryCredentials,
} from "../../lib/oci/_docker_config.ts";
import { RangesUnavailableError } from "../../lib/transfer/byte_source.ts";
import { temporaryDir } from "../support/directory.ts";

const login = (user: string, password: string) => ({ user, password });

/** Reads the credentials for a registry from this config.json. */
async function found(
  registry: string,
  config: unknown,
  env: Record<string, string> = {},
) {
  await using dir = await temporaryDir();
  const text = typeof config === "string" ? config : JSON.stringify(config);
  await Deno.writeTextFile(join(dir.path, "config.json"), text);
  const all = new Map(Object.entries({ DOCKER_CONFIG: dir.path, ...env }));
  return await readRegistryCredentials(registry, { env: all });
}

Deno.test("readRegistryCredentials() reads only the requested registry's credentials from config.json", async () => {
  const auths = {
    "a.example": { auth: btoa("user:pass:word") },
    "https://old.example/v1/": { username: "u", password: "p" },
    "https://constructor": { username: "c", password: "p" },
    "id.example": { auth: btoa("u:"), identitytoken: "refresh" },
    "token.example": { registrytoken: "bearer" },
    "https://index.docker.io/v1/": { auth: btoa("hub:secret") },
  };
  assertEquals(await found("a.example", { auths }), {
    login: login("user", "pass:word"),
  });
  assertEquals(await found("old.example", { auths }), {
    login: login("u", "p"),
  });
  assertEquals(await found("id.example", { auths }), {
    login: login("u", ""),
    identityToken: "refresh",
  });
  assertEquals(await found("token.example", { auths }), {
    registryToken: "bearer",
  });
  assertEquals(await found("docker.io", { auths }), {
    login: login("hub", "secret"),
  });
  assertEquals(await found("a.example:5000", { auths }), {});
  assertEquals(await found("constructor", { auths }), {
    login: login("c", "p"),
  });
  assertEquals(await found("constructor", {}), {});
});

Deno.test("readRegistryCredentials() ignores malformed fields of a config.json entry", async () => {
  const entries: [unknown, object][] = [
    [{ auth: btoa(":p") }, { login: login("", "p") }],
    [{ auth: btoa("u:p"), username: "other" }, { login: login("u", "p") }],
    [{ username: "u" }, { login: login("u", "") }],
    [{ auth: "", username: "", identitytoken: "", registrytoken: "" }, {}],
    [{ auth: 7, username: 7, identitytoken: 7, registrytoken: 7 }, {}],
    [null, {}],
    ["u:p", {}],
  ];
  for (const [entry, expected] of entries) {
    const auths = { "a.example": entry };
    assertEquals(await found("a.example", { auths }), expected);
  }
  const auths = { "http://b.example/v2/": { username: "u" } };
  const b = { login: login("u", "") };
  assertEquals(await found("b.example", { auths }), b);
  const hub = { "https://index.docker.io/v1/": { username: "u" } };
  assertEquals(await found("registry-1.docker.io", { auths: hub }), b);
  assertEquals(await found("a.example", {}), {});
});

Deno.test({
  name:
    "readRegistryCredentials() reads config.json in DOCKER_CONFIG, else in ~/.docker",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const auths = { "a.example": { username: "u" } };
    await Deno.mkdir(join(dir.path, ".docker"));
    const path = join(dir.path, ".docker", "config.json");
    await Deno.writeTextFile(path, JSON.stringify({ auths }));
    const read = (...entries: [string, string][]) =>
      readRegistryCredentials("a.example", { env: new Map(entries) });
    const home: [string, string] = ["HOME", dir.path];
    const known = { login: login("u", "") };
    assertEquals(await read(home), known);
    assertEquals(await read(["DOCKER_CONFIG", ""], home), known);
    assertEquals(
      await read(["DOCKER_CONFIG", join(dir.path, ".docker")]),
      known,
    );
    assertEquals(await read(["DOCKER_CONFIG", dir.path], home), {});
    assertEquals(await read(), {});
  },
});

Deno.test("readRegistryCredentials() without config.json returns only ghcr.io credentials from the environment", async () => {
  const env = new Map(Object.entries({ HOME: "/nonexistent" }));
  assertEquals(await readRegistryCredentials("a.example", { env }), {});
  env.set("GHCR_TOKEN", "secret\n").set("GITHUB_ACTOR", "me");
  assertEquals(await readRegistryCredentials("ghcr.io", { env }), {
    login: login("me", "secret"),
  });
  assertEquals(await readRegistryCredentials("a.example", { env }), {});
});

Deno.test("readRegistryCredentials() rejects a malformed config.json without printing secrets", async () => {
  for (
    const config of [
      "{",
      "[]x",
      { auths: { "a.example": { auth: "not base64!" } } },
      { auths: { "a.example": { auth: btoa("nocolon-secret") } } },
    ]
  ) {
    const error = await assertRejects(
      () => found("a.example", config),
      RangesUnavailableError,
    );
    assertEquals(/secret|base64!/.test(error.message), false, error.message);
  }
});

Deno.test("readRegistryCredentials() reports the path of a config.json that is not a JSON object", async () => {
  for (const config of ["null", "7", '"x"']) {
    await assertRejects(
      () => found("a.example", config),
      RangesUnavailableError,
      "/config.json is not a JSON object",
    );
  }
  await assertRejects(
    () => found("a.example", '{\n  "auths": "s3cret" x}'),
    RangesUnavailableError,
    "/config.json:2:21: not JSON: Expected ',' or '}' after property value",
  );
});

Deno.test("readRegistryCredentials() treats an empty config.json as one without credentials, as docker does", async () => {
  for (const text of ["", " \r\n\t"]) {
    assertEquals(await found("a.example", text), {});
  }
});

Deno.test("readDockerConfigFile() reports the path of an unreadable config.json", async () => {
  await using dir = await temporaryDir();
  const env = new Map([["DOCKER_CONFIG", dir.path]]);
  assertEquals(await readDockerConfigFile(env), undefined);
  const path = join(dir.path, "config.json");
  await Deno.mkdir(path);
  await assertRejects(
    () => readDockerConfigFile(env),
    RangesUnavailableError,
    `${path} cannot be read`,
  );
});

Deno.test("credentialHelperFor() prefers credHelpers to credsStore and ignores a malformed helper name", () => {
  const helper = (config: unknown, registry = "a.example") => {
    const text = JSON.stringify(config);
    return credentialHelperFor({ path: "config.json", text }, registry);
  };
  const own = { "a.example": "own", "https://index.docker.io/v1/": "hub" };
  assertEquals(helper({ credsStore: "all", credHelpers: own }), "own");
  assertEquals(helper({ credHelpers: own }, "docker.io"), "hub");
  assertEquals(helper({ credsStore: "all", credHelpers: own }, "b"), "all");
  for (const config of [{}, { credsStore: 7 }, { credHelpers: ["x"] }]) {
    assertEquals(helper(config), undefined);
  }
});

Deno.test({
  name:
    "readRegistryCredentials() names the missing --allow-run flag for a credential helper",
  permissions: {
    read: true,
    write: true,
    env: true,
    run: ["docker-credential-x"],
  },
  async fn() {
    const config = { credsStore: "y" };
    await assertRejects(
      () => found("a.example", config),
      RangesUnavailableError,
      "--allow-run=docker-credential-y is not granted",
    );
  },
});

Deno.test({
  name:
    "readRegistryCredentials() ignores a config.json without read permission",
  permissions: { read: ["/nonexistent"], write: true },
  async fn() {
    const dir = await Deno.makeTempDir();
    try {
      await Deno.writeTextFile(join(dir, "config.json"), "{");
      const env = new Map([["DOCKER_CONFIG", dir]]);
      assertEquals(await readRegistryCredentials("a.example", { env }), {});
    } finally {
      await Deno.remove(dir, { recursive: true });
    }
  },
});

Deno.test({
  name:
    "readRegistryCredentials() runs the registry's credential helper, else the credential store",
  ignore: Deno.build.os === "windows",
  async fn(t) {
    await using dir = await temporaryDir();
    const helper = async (name: string, script: string) => {
      const path = join(dir.path, `docker-credential-${name}`);
      await Deno.writeTextFile(path, `#!/bin/sh\nread host\n${script}\n`, {
        mode: 0o755,
      });
    };
    await helper(
      "own",
      `echo "{\\"Username\\":\\"$1\\",\\"Secret\\":\\"$host\\"}"`,
    );
    await helper("all", `echo '{"Username":"<token>","Secret":"refresh"}'`);
    await helper(
      "none",
      "echo credentials not found in native keychain; exit 1",
    );
    await helper("broken", "printf 'no\\033[1m\\nkeyring: 429'; exit 1");
    await helper("loud", "echo 'Cannot autolaunch D-Bus' >&2; exit 1");
    await helper("silent", "exit 3");
    await helper("empty", "exit 0");
    await helper("failing", `echo '{"Username":"u","Secret":"s"}'; exit 1`);
    await helper("half", `echo '{"Username":"u"}'`);
    await helper("nameless", `echo '{"Secret":"some-secret"}'`);
    await helper("slow", "exec sleep 60");
    const path = Deno.env.get("PATH")!;
    Deno.env.set("PATH", `${dir.path}:${path}`);
    try {
      const config = {
        credsStore: "all",
        credHelpers: {
          "own.example": "own",
          "none.example": "none",
          "broken.example": "broken",
          "loud.example": "loud",
          "silent.example": "silent",
          "empty.example": "empty",
          "missing.example": "missing",
          "failing.example": "failing",
          "half.example": "half",
          "nameless.example": "nameless",
          "slow.example": "slow",
        },
      };
      await t.step(
        "reads credentials from the registry's own helper",
        async () =>
          assertEquals(await found("own.example", config), {
            login: login("get", "own.example"),
          }),
      );
      await t.step(
        "reads an identity token from the credential store",
        async () =>
          assertEquals(await found("other.example", config), {
            identityToken: "refresh",
          }),
      );
      await t.step(
        "returns no credentials when the helper has none",
        async () => assertEquals(await found("none.example", config), {}),
      );
      const reasons = {
        broken: "no?[1m keyring: 429",
        loud: "Cannot autolaunch D-Bus",
        silent: "exit status 3",
        empty: "no user name and secret in the output",
        missing: "not found on PATH",
        failing: '{"Username":"u","Secret":"***"}',
        half: "no user name and secret in the output",
        nameless: "no user name and secret in the output",
      };
      for (const [name, reason] of Object.entries(reasons)) {
        await t.step(`reports a failing helper: ${name}`, async () => {
          const error = await assertRejects(
            () => found(`${name}.example`, config),
            RangesUnavailableError,
          );
          assertEquals(
            error.message,
            `docker-credential-${name} failed: ${reason}`,
          );
        });
      }
      await t.step(
        "aborts a slow helper with the caller's reason",
        async () => {
          await Deno.writeTextFile(
            join(dir.path, "config.json"),
            JSON.stringify(config),
          );
          const env = new Map([["DOCKER_CONFIG", dir.path]]);
          const signal = AbortSignal.abort(new Error("enough"));
          await assertRejects(
            () => readRegistryCredentials("slow.example", { env, signal }),
            Error,
            "enough",
          );
        },
      );
    } finally {
      Deno.env.set("PATH", path);
    }
  },
});
