import { assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { parseCredentialError } from "../../lib/oci/_oras_errors.ts";
import { redactSecrets } from "../../lib/oci/ghcr_credentials.ts";
import { orasClient } from "../../lib/oci/oras_client.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { shell } from "../support/fake_oras.ts";
import { assertLinear } from "../support/assert_linear.ts";
import { foundTools, requires } from "../support/parts.ts";

const HOST = "registry.example";
const ASKED =
  `Error: failed to fetch the content of "${HOST}/a/b:1": GET "https://${HOST}/v2/a/b/manifests/1"`;

/** Parses oras's output with this Docker configuration. */
function recognized(said: string, config: unknown = { credsStore: "x" }) {
  const text = typeof config === "string" ? config : JSON.stringify(config);
  const file = { path: "/d/config.json", text };
  return parseCredentialError(redactSecrets(said), HOST, file);
}

const FALLIBLE = [
  "dial tcp 10.0.0.1:443: connect: connection refused",
  'Get "http://169.254.169.254/role": dial tcp: connection refused',
  "write /tmp/x: no space left on device",
  "ThrottlingException: too many requests",
  "unexpected end of JSON input",
  "Cannot autolaunch D-Bus without X11 $DISPLAY",
  "failed to get credentials: unauthorized",
  "missing username or password for basic auth",
  'exec: "docker-credential-x": executable file not found in $PATH',
];

Deno.test("parseCredentialError() names the credential helper and quotes its output, even if the output reads like a network error", () => {
  for (const words of FALLIBLE) {
    for (const marker of ["failed to resolve credential: ", ""]) {
      const error = recognized(`${ASKED}: ${marker}${words}\n`)!;
      assertEquals(error.code, "credentials_failed");
      assertEquals(
        error.message,
        `Cannot get credentials for ${HOST}: docker-credential-x failed: ${words}`,
      );
      assertEquals(
        error.hint,
        `run the helper to see why: echo ${HOST} | docker-credential-x get; or remove the helper from /d/config.json and log in again: oras login ${HOST}`,
      );
    }
  }
});

Deno.test("parseCredentialError() quotes a helper's stderr on one line when its stdout is empty", () => {
  const error = recognized(
    `Error: no\u001b[1m keyring\nlocked${ASKED}: failed to resolve credential: exit status 1\n`,
  );
  assertStringIncludes(error!.message, "failed: Error: no?[1m keyring locked");
  const silent = recognized(`${ASKED}: exit status 3\n`);
  assertStringIncludes(silent!.message, "failed: exit status 3");
});

Deno.test("parseCredentialError() returns undefined for errors of the registry or its token service", () => {
  const token = `"https://auth.example/token?…"`;
  for (
    const said of [
      `${ASKED}: Get ${token}: dial tcp: connection refused`,
      `${ASKED}: Post "https://auth.example/token": EOF`,
      `${ASKED}: GET ${token}: empty token returned`,
      `${ASKED}: response status code 503: Service Unavailable`,
      `${ASKED}: mismatch Content-Length`,
      `${ASKED}: bearer realm host "x" is 127.0.0.1, in blocked prefix`,
      `Error: failed to fetch: Get "https://${HOST}/v2/": EOF`,
      `Error: basic credential not found`,
      `Error response from registry: GET "https://${HOST}/v2/": failed to resolve credential: x`,
      `Error response from registry: Error: GET "https://${HOST}/v2/": failed to resolve credential: x`,
      `Error response from registry: x\nError: GET "https://${HOST}/v2/": failed to resolve credential: x`,
      "",
    ]
  ) assertEquals(recognized(said), undefined, said);
  // Without a helper, no error is that of a helper.
  for (const words of FALLIBLE) {
    assertEquals(recognized(`${ASKED}: ${words}`, {}), undefined);
  }
});

Deno.test("parseCredentialError() reports the path and position of a malformed Docker configuration", () => {
  const cases: [string, string, string][] = [
    [
      '{"auths": {\n  "a": s3cret',
      "failed to decode config file at /d/config.json: invalid config format: invalid character 's' looking for beginning of value",
      "/d/config.json:2:8: not JSON: Unexpected token 's'",
    ],
    [
      "{",
      "failed to decode config file /d/config.json: invalid config format: unexpected EOF",
      "/d/config.json:1:2: not JSON: Expected property name or '}'",
    ],
    [
      '{"credsStore": 7}',
      "failed to unmarshal creds store field: invalid config format: json: cannot unmarshal number into Go value of type string",
      "/d/config.json (oras: failed to unmarshal creds store field: invalid config format: json: cannot unmarshal number into Go value of type string)",
    ],
    [
      `{"auths": {"${HOST}": {"auth": "!"}}}`,
      `GET "https://${HOST}/v2/": failed to resolve credential: failed to decode auth field: invalid config format: illegal base64 data at input byte 0`,
      "/d/config.json (oras: failed to decode auth field: invalid config format: illegal base64 data at input byte 0)",
    ],
  ];
  for (const [text, said, where] of cases) {
    const { code, message, hint } = recognized(`Error: ${said}\n`, text)!;
    assertEquals(code, "file_unreadable");
    assertEquals(message, `Cannot read Docker's configuration: ${where}`);
    assertEquals(
      hint,
      `fix or delete /d/config.json, then log in again: oras login ${HOST}`,
    );
  }
});

Deno.test("parseCredentialError() takes linear time in the length of oras's output", async () => {
  for (
    const word of ["Error: ", 'GET "https:', 'GET "https://x": ', "auth '"]
  ) {
    for (const line of [word, `${word}\n`]) {
      const text = (length: number) => line.repeat(length);
      await assertLinear(line, text, (it) => recognized(it), 60_000);
    }
  }
});

/** Starts a registry for each scheme, with a directory for the test. */
async function site() {
  await using undo = new AsyncDisposableStack();
  const dir = undo.use(await temporaryDir());
  const serve = (challenge: string) =>
    undo.use(Deno.serve(
      { hostname: "127.0.0.1", port: 0, onListen() {} },
      () =>
        new Response(null, {
          status: 401,
          headers: { "www-authenticate": challenge },
        }),
    ));
  const servers = [
    serve('Basic realm="x"'),
    serve('Bearer realm="http://127.0.0.1:1/token",service="x"'),
  ];
  const all = undo.move();
  return {
    dir: dir.path,
    hosts: servers.map(({ addr }) => `127.0.0.1:${addr.port}`),
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

Deno.test({
  name:
    "OrasClient.fetchManifest() with the real oras throws credentials_failed for any failing credential helper",
  ignore: requires("oras").ignore || shell.ignore,
  async fn(t) {
    await using all = await site();
    const helper = async (name: string, script: string) => {
      const path = join(all.dir, `docker-credential-${name}`);
      await Deno.writeTextFile(path, `#!/bin/sh\ncat >&2\n${script}\n`, {
        mode: 0o755,
      });
    };
    await helper("refused", "echo 'dial tcp: connection refused'; exit 1");
    await helper("disk", "echo 'no space left on device'; exit 1");
    await helper("busy", "echo 'too many requests'; exit 1");
    await helper("empty", "exit 0");
    await helper("dbus", "echo 'Cannot autolaunch D-Bus' >&2; exit 1");
    await helper("leaks", `echo '{"Secret":"s3cret"}'; exit 1`);
    const cases = {
      refused: "dial tcp: connection refused",
      disk: "no space left on device",
      busy: "too many requests",
      empty: "unexpected end of JSON input",
      dbus: "Cannot autolaunch D-Bus",
      leaks: '{"Secret":"***"}',
      missing: "executable file not found",
      "desktop.exe": "Docker Desktop seems not running",
    };
    const [path, config] = [
      Deno.env.get("PATH")!,
      Deno.env.get("DOCKER_CONFIG"),
    ];
    Deno.env.set("PATH", `${all.dir}:${path}`);
    Deno.env.set("TOOLSMITH_ORAS", foundTools.oras!);
    try {
      for (const [name, words] of Object.entries(cases)) {
        await t.step(`docker-credential-${name}`, async () => {
          const docker = join(all.dir, name);
          await Deno.mkdir(docker);
          await Deno.writeTextFile(
            join(docker, "config.json"),
            JSON.stringify({ credsStore: name }),
          );
          Deno.env.set("DOCKER_CONFIG", docker);
          for (const host of all.hosts) {
            const { message } = await expectFailure(
              "credentials_failed",
              () => orasClient().fetchManifest(parseReference(`${host}/a/b:1`)),
            );
            assertStringIncludes(message, `docker-credential-${name} failed: `);
            assertStringIncludes(message, words);
          }
        });
      }
    } finally {
      Deno.env.set("PATH", path);
      Deno.env.delete("TOOLSMITH_ORAS");
      if (config === undefined) Deno.env.delete("DOCKER_CONFIG");
      else Deno.env.set("DOCKER_CONFIG", config);
    }
  },
});
