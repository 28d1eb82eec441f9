import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import {
  orasPath,
  runOras,
  runOrasForRegistry,
} from "../../lib/oci/_oras_program.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { fakeOras, shell } from "../support/fake_oras.ts";

const GHCR = parseReference("ghcr.io/owner/vm:1");
const OTHER = parseReference("registry.example/owner/vm:1");
const LOCAL = parseReference("localhost:5000/owner/vm:1");
/** Keeps Docker's credentials off plain HTTP. */
const NO_CREDENTIALS = ["--registry-config", "/nonexistent/toolsmith.json"];
const TOKEN: [string, string][] = [
  ["GHCR_TOKEN", "t0ken"],
  ["GHCR_USERNAME", "me"],
];

Deno.test({
  name:
    "runOrasForRegistry() passes connection flags to oras, and the token on stdin only",
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
      // oras may run in another working directory.
      [
        ...[LOCAL, { caFile: "a.pem" }] as const,
        [plain(false), "--ca-file", join(Deno.cwd(), "a.pem")],
        "",
      ],
    ];
    await using fake = await fakeOras("echo printed");
    const env = new Map([...fake.env, ...TOKEN]);
    const call = { subcommand: ["manifest", "fetch"], args: ["x"] };
    for (const [reference, options, flags, input] of cases) {
      const { stdout } = await runOrasForRegistry(
        reference,
        { env, ...options },
        call,
      );
      assertEquals(stdout, "printed\n");
      assertEquals(await fake.args(), ["manifest", "fetch", ...flags, "x"]);
      assertEquals(await fake.input(), input);
    }
  },
});

Deno.test({
  name:
    "runOrasForRegistry() passes oras the path of a nonexistent configuration only if config.json is empty",
  ...shell,
  async fn() {
    await using fake = await fakeOras("");
    const path = join(fake.dir, "config.json");
    const env = new Map([...fake.env, ["DOCKER_CONFIG", fake.dir]]);
    const flags = async () => {
      await runOrasForRegistry(OTHER, { env }, {
        subcommand: ["pull"],
        args: [],
      });
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
    // With credentials, oras reads no configuration.
    await Deno.writeTextFile(path, "");
    const withToken = { env: new Map([...env, ...TOKEN]) };
    await runOrasForRegistry(GHCR, withToken, {
      subcommand: ["pull"],
      args: [],
    });
    assertEquals((await fake.args())!.includes("--registry-config"), false);
  },
});

Deno.test({
  name:
    "runOrasForRegistry() refuses GHCR_TOKEN over plain HTTP before it starts oras",
  ...shell,
  async fn() {
    await using fake = await fakeOras("");
    const call = { subcommand: ["pull"], args: [] };
    const attempt = (env: Map<string, string>) =>
      runOrasForRegistry(GHCR, { env, plainHttp: true }, call);
    const { message, hint } = await expectFailure(
      "usage",
      () => attempt(new Map([...fake.env, ...TOKEN])),
    );
    assertEquals(message, "Cannot send GHCR_TOKEN to ghcr.io over plain HTTP");
    assertStringIncludes(hint!, "remove --plain-http");
    assertEquals(await fake.args(), undefined);
    await attempt(fake.env);
    const flags = ["--plain-http=true", ...NO_CREDENTIALS];
    assertEquals(await fake.args(), ["pull", ...flags]);
  },
});

Deno.test({
  name:
    "runOrasForRegistry() throws a typed error with the token redacted and a matching hint",
  ...shell,
  async fn() {
    await using fake = await fakeOras(
      "echo fine; echo Error: denied: t0ken >&2; exit 1",
    );
    const call = { subcommand: ["pull"], args: [] };
    const given = await expectFailure(
      "forbidden",
      () =>
        runOrasForRegistry(
          GHCR,
          { env: new Map([...fake.env, ...TOKEN]) },
          call,
        ),
    );
    assertEquals(
      given.message,
      "Forbidden: no access to ghcr.io/owner/vm:1 (oras: denied: ***)",
    );
    assertStringIncludes(given.hint!, "check the scope of GHCR_TOKEN");
    const none = await expectFailure(
      "forbidden",
      () => runOrasForRegistry(GHCR, { env: fake.env }, call),
    );
    assertStringIncludes(none.hint!, "set GHCR_TOKEN (scope read:packages");
  },
});

Deno.test({
  name: "runOras() reports the path of a missing or non-executable oras",
  ...shell,
  async fn() {
    await using fake = await fakeOras("");
    await Deno.chmod(fake.path, 0o644);
    for (const path of [fake.path, join(fake.dir, "none")]) {
      const env = new Map([["TOOLSMITH_ORAS", path]]);
      const { message, hint } = await expectFailure(
        "oras_not_found",
        () => runOras({ env }, { args: ["version"] }),
      );
      assertEquals(
        message,
        `oras not found: ${path} is missing or not executable`,
      );
      assertStringIncludes(hint!, "set TOOLSMITH_ORAS to its path");
    }
    // Without the variable, PATH is searched.
    assertEquals(orasPath({ env: new Map() }), "oras");
    const search = Deno.env.get("PATH")!;
    Deno.env.set("PATH", fake.dir);
    await Deno.remove(fake.path);
    try {
      const { message } = await expectFailure(
        "oras_not_found",
        () => runOras({ env: new Map() }, { args: ["version"] }),
      );
      assertEquals(message, "oras not found on PATH");
    } finally {
      Deno.env.set("PATH", search);
    }
  },
});

Deno.test({
  name:
    "runOrasForRegistry() ends oras when the operation's or the call's signal is aborted",
  ...shell,
  async fn() {
    await using fake = await fakeOras("exec sleep 60");
    const { env } = fake;
    const enough = AbortSignal.abort(new Error("enough"));
    const { signal: open } = new AbortController();
    const call = { subcommand: ["pull"], args: [] };
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
          runOrasForRegistry(LOCAL, { env, signal: whole }, {
            ...call,
            signal: one,
          }),
        Error,
        "enough",
      );
    }
    await assertRejects(
      () => runOras({ env, signal: enough }, { args: ["version"] }),
      Error,
      "enough",
    );
  },
});
