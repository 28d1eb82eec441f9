import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { orasProcess } from "../../lib/oci/_oras_process.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { failure } from "../support/failure.ts";
import { fakeOras, shell } from "../support/fake_oras.ts";

const GHCR = parseReference("ghcr.io/owner/vm:1");
const OTHER = parseReference("registry.example/owner/vm:1");
const LOCAL = parseReference("localhost:5000/owner/vm:1");
/** For Docker's credentials are not to cross plain HTTP either. */
const NO_CREDENTIALS = ["--registry-config", "/nonexistent/toolsmith.json"];
const TOKEN: [string, string][] = [
  ["GHCR_TOKEN", "t0ken"],
  ["GHCR_USERNAME", "me"],
];

Deno.test({
  name:
    "oras is told by each call how its registry is reached, and a token by stdin alone",
  ...shell,
  async fn() {
    const plain = (is: boolean) => `--plain-http=${is}`;
    const known = ["-u", "me", "--password-stdin"];
    const cases: [typeof GHCR, object, string[], string][] = [
      [GHCR, {}, [plain(false), ...known], "t0ken"],
      [OTHER, {}, [plain(false)], ""],
      [OTHER, { plainHttp: true }, [plain(true), ...NO_CREDENTIALS], ""],
      [LOCAL, {}, [plain(true)], ""],
      [LOCAL, { plainHttp: false }, [plain(false)], ""],
      // oras may start in another directory.
      [
        ...[LOCAL, { caFile: "a.pem" }] as const,
        [plain(false), "--ca-file", join(Deno.cwd(), "a.pem")],
        "",
      ],
    ];
    await using fake = await fakeOras("echo printed");
    const env = new Map([...fake.env, ...TOKEN]);
    const call = { command: ["manifest", "fetch"], args: ["x"] };
    for (const [reference, options, flags, input] of cases) {
      const { stdout } = await orasProcess({ env, ...options })
        .call(reference, call);
      assertEquals(stdout, "printed\n");
      assertEquals(await fake.args(), ["manifest", "fetch", ...flags, "x"]);
      assertEquals(await fake.input(), input);
    }
  },
});

Deno.test({
  name:
    "oras is given a configuration that does not exist in place of an empty one, and no other",
  ...shell,
  async fn() {
    await using fake = await fakeOras("");
    const path = join(fake.dir, "config.json");
    const env = new Map([...fake.env, ["DOCKER_CONFIG", fake.dir]]);
    const flags = async () => {
      await orasProcess({ env }).call(OTHER, { command: ["pull"], args: [] });
      return (await fake.args())!.slice(2);
    };
    assertEquals(await flags(), []);
    for (const text of ["", "\n "]) {
      await Deno.writeTextFile(path, text);
      const [flag, missing] = await flags();
      assertEquals(flag, "--registry-config");
      await assertRejects(() => Deno.lstat(missing), Deno.errors.NotFound);
    }
    for (const text of ["{}", "{"]) {
      await Deno.writeTextFile(path, text);
      assertEquals(await flags(), []);
    }
    // With credentials of its own it reads none.
    await Deno.writeTextFile(path, "");
    await orasProcess({ env: new Map([...env, ...TOKEN]) })
      .call(GHCR, { command: ["pull"], args: [] });
    assertEquals((await fake.args())!.includes("--registry-config"), false);
  },
});

Deno.test({
  name: "a token is never sent over plain HTTP: oras is not even started",
  ...shell,
  async fn() {
    await using fake = await fakeOras("");
    const call = { command: ["pull"], args: [] };
    const attempt = (env: Map<string, string>) =>
      orasProcess({ env, plainHttp: true }).call(GHCR, call);
    const { message, hint } = await failure(
      "usage",
      () => attempt(new Map([...fake.env, ...TOKEN])),
    );
    assertEquals(message, "Cannot send GHCR_TOKEN to ghcr.io over plain HTTP");
    assertStringIncludes(hint!, "leave out --plain-http");
    assertEquals(await fake.args(), undefined);
    await attempt(fake.env);
    const flags = ["--plain-http=true", ...NO_CREDENTIALS];
    assertEquals(await fake.args(), ["pull", ...flags]);
  },
});

Deno.test({
  name:
    "what oras fails with is typed, without the token, and its hint knows of it",
  ...shell,
  async fn() {
    await using fake = await fakeOras(
      "echo fine; echo Error: denied: t0ken >&2; exit 1",
    );
    const call = { command: ["pull"], args: [] };
    const given = await failure(
      "forbidden",
      () =>
        orasProcess({ env: new Map([...fake.env, ...TOKEN]) }).call(GHCR, call),
    );
    assertEquals(
      given.message,
      "Forbidden: no access to ghcr.io/owner/vm:1 (oras: denied: ***)",
    );
    assertStringIncludes(given.hint!, "verify the scope of GHCR_TOKEN");
    const none = await failure(
      "forbidden",
      () => orasProcess({ env: fake.env }).call(GHCR, call),
    );
    assertStringIncludes(none.hint!, "set GHCR_TOKEN (scope read:packages");
  },
});

Deno.test({
  name: "an oras that is not there or cannot be run is told with its name",
  ...shell,
  async fn() {
    await using fake = await fakeOras("");
    await Deno.chmod(fake.path, 0o644);
    for (const path of [fake.path, join(fake.dir, "none")]) {
      const env = new Map([["TOOLSMITH_ORAS", path]]);
      const { message, hint } = await failure(
        "oras_not_found",
        () => orasProcess({ env }).run(["version"]),
      );
      assertEquals(message, `oras not found: ${path} cannot be run`);
      assertStringIncludes(hint!, "set TOOLSMITH_ORAS to its path");
    }
    // Without the variable it is looked for where all programs are.
    assertEquals(orasProcess({ env: new Map() }).program, "oras");
    const search = Deno.env.get("PATH")!;
    Deno.env.set("PATH", fake.dir);
    await Deno.remove(fake.path);
    try {
      const { message } = await failure(
        "oras_not_found",
        () => orasProcess({ env: new Map() }).run(["version"]),
      );
      assertEquals(message, "oras not found on PATH");
    } finally {
      Deno.env.set("PATH", search);
    }
  },
});

Deno.test({
  name:
    "oras ends with the operation, or with the call, whichever is cancelled",
  ...shell,
  async fn() {
    await using fake = await fakeOras("exec sleep 60");
    const { env } = fake;
    const enough = AbortSignal.abort(new Error("enough"));
    const { signal: open } = new AbortController();
    const call = { command: ["pull"], args: [] };
    for (
      const [whole, one] of [
        [enough, open],
        [enough, undefined],
        [open, enough],
        [undefined, enough],
      ]
    ) {
      await assertRejects(
        () =>
          orasProcess({ env, signal: whole })
            .call(LOCAL, { ...call, signal: one }),
        Error,
        "enough",
      );
    }
    await assertRejects(
      () => orasProcess({ env, signal: enough }).run(["version"]),
      Error,
      "enough",
    );
  },
});

Deno.test("a call that does not move is waited for a minute, or as long as was asked", () => {
  assertEquals(orasProcess({}).stallMs, 60_000);
  assertEquals(orasProcess({ stallTimeoutMs: 7 }).stallMs, 7);
});
