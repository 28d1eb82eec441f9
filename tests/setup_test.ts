/**
 * The set-up brings each program once, whole, and checked; and it says what it
 * cannot bring.
 */
import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { copy } from "@std/fs";
import { ToolsmithError } from "../lib/errors.ts";
import { type Output, run } from "../lib/process.ts";
import { canBuild } from "../scripts/_go.ts";
import { fetchPinned } from "../scripts/_release.ts";
import { isOrasNewEnough } from "../scripts/setup.ts";
import { ROOT } from "../scripts/deno.ts";
import { needs, parts } from "./_parts.ts";

/** A copy of what the set-up consists of, on a host with few programs. */
async function withCopies(
  count: number,
  programs: string[],
  test: (copies: Copy[]) => Promise<void>,
): Promise<void> {
  const folder = await Deno.realPath(await Deno.makeTempDir());
  try {
    await Deno.mkdir(`${folder}/bin`);
    for (const name of programs) {
      await Deno.symlink(await which(name), `${folder}/bin/${name}`);
    }
    const env = {
      PATH: `${folder}/bin`,
      TOOLSMITH_ORAS: "",
      TOOLSMITH_TEST_ACTIONLINT: "",
    };
    const copies: Copy[] = [];
    for (let index = 0; index < count; index++) {
      const root = `${folder}/copy ${index}`;
      for (const part of ["lib", "scripts", "tools"]) {
        await copy(`${ROOT}/${part}`, `${root}/${part}`);
      }
      copies.push({ root, setup: (...names) => setup(root, names, env) });
    }
    await test(copies);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

interface Copy {
  root: string;
  setup: (...parts: string[]) => Promise<Output>;
}

function setup(root: string, names: string[], env: Record<string, string>) {
  return run(Deno.execPath(), {
    args: ["run", "-A", "--no-config", `${root}/scripts/setup.ts`, ...names],
    env: { ...env, NO_COLOR: "1" },
    timeoutMs: 600_000,
  });
}

async function which(program: string): Promise<string> {
  for (const folder of Deno.env.get("PATH")!.split(":")) {
    const path = await Deno.realPath(`${folder}/${program}`).catch(() => "");
    if (path) return path;
  }
  throw new Error(`${program} is not on PATH`);
}

/** What lies in the folder of programs, but for the lock. */
function brought(root: string): string[] {
  return [...Deno.readDirSync(`${root}/.cache/tools`)]
    .map(({ name }) => name)
    .filter((name) => name !== ".lock");
}

const onUnix = Deno.build.os === "windows" ? { ignore: true } : {};

Deno.test({
  name: "a set-up that finds everything is silent",
  ...needs("oras", "registry", "actionlint"),
  async fn() {
    const env = { TOOLSMITH_ORAS: parts.oras! };
    const again = await setup(ROOT, ["oras", "registry", "actionlint"], env);
    assertEquals([again.code, again.stdout, again.stderr], [0, "", ""]);
  },
});

Deno.test({
  name: "set-ups at the same time, in one folder and in two, build once each",
  ignore: Deno.build.os === "windows" ||
    !await canBuild(`${ROOT}/tools/actionlint`),
  fn: () =>
    withCopies(2, ["go"], async ([one, two]) => {
      // What a killed set-up left.
      await Deno.mkdir(`${one.root}/.cache/tools/.new-x`, { recursive: true });
      const runs = await Promise.all(
        [one, one, one, two].map(({ setup }) => setup("actionlint")),
      );
      assertEquals(runs.map(({ code }) => code), [0, 0, 0, 0]);
      const said = runs.map(({ stderr }) => /building/.test(stderr) ? 1 : 0);
      assertEquals(said[0] + said[1] + said[2], 1);
      assertEquals(said[3], 1);
      for (const { root, setup } of [one, two]) {
        const [name, ...others] = brought(root);
        assertEquals(others, []);
        const program = `${root}/.cache/tools/${name}/actionlint`;
        assertEquals((await run(program, { args: ["-version"] })).code, 0);
        assertEquals((await setup("actionlint")).stderr, "");
      }
    }),
});

Deno.test({
  name: "what cannot be brought is named in one line, with the remedy",
  ...onUnix,
  fn: () =>
    withCopies(1, [], async ([{ setup }]) => {
      const { code, stderr } = await setup("actionlint");
      assertEquals(code, 1);
      assertMatch(
        stderr,
        /^setup: actionlint is missing: install Go 1\.\d+ or newer, .*\n$/,
      );
      const wrong = await setup("orsa");
      assertEquals(wrong.code, 2);
      assertMatch(wrong.stderr, /no part "orsa": it is one of oras, /);
    }),
});

Deno.test({
  name: "without Go, oras comes from the release, if that is what was pinned",
  ...needs("oras"),
  ...onUnix,
  fn: () =>
    withCopies(1, ["tar", "gzip"], async ([{ root, setup }]) => {
      const archive = `${root}/release.tar.gz`;
      await Deno.copyFile(parts.oras!, `${root}/oras`);
      await run("tar", { args: ["-czf", archive, "oras"], cwd: root });
      const bytes = await Deno.readFile(archive);
      await using server = Deno.serve(
        { hostname: "127.0.0.1", port: 0, onListen: () => {} },
        () => new Response(bytes),
      );
      const pin = (sha256: string) => {
        const system = `${Deno.build.os}-${Deno.build.arch}`;
        const release = {
          version: "1.3.0",
          base: `http://127.0.0.1:${server.addr.port}/`,
          archives: { [system]: { name: "oras.tar.gz", sha256 } },
        };
        return Deno.writeTextFile(
          `${root}/tools/oras/release.json`,
          JSON.stringify(release),
        );
      };
      await pin("0".repeat(64));
      const refused = await setup("oras");
      assertEquals(refused.code, 1);
      assertMatch(refused.stderr, /is not what was pinned: expected 0000/);
      assertEquals(brought(root), []);

      await pin(await sha256(bytes));
      const taken = await setup("oras");
      assertEquals(taken.stderr, "setup: downloading oras\n");
      const [name] = brought(root);
      const program = `${root}/.cache/tools/${name}/oras`;
      assertEquals((await run(program, { args: ["version"] })).code, 0);
    }),
});

Deno.test("a download that is not what was pinned is refused", async () => {
  const bytes = new TextEncoder().encode("an archive");
  await using server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen: () => {} },
    (request) =>
      request.url.endsWith("/there")
        ? new Response(bytes)
        : new Response("no such file", { status: 404 }),
  );
  const url = `http://127.0.0.1:${server.addr.port}`;
  const right = await sha256(bytes);
  assertEquals(await fetchPinned(`${url}/there`, right), bytes);
  const mismatch = await assertRejects(
    () => fetchPinned(`${url}/there`, "ab".repeat(32)),
    ToolsmithError,
    `expected ${"ab".repeat(32)}, got ${right}`,
  );
  assertEquals(mismatch.code, "checksum_mismatch");
  await assertRejects(
    () => fetchPinned(`${url}/elsewhere`, right),
    ToolsmithError,
    "answers 404",
  );
});

async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

Deno.test("oras 1.3.0 and newer is taken, older is not", () => {
  const verdicts = {
    "1.3.0": true,
    "1.3.0+unreleased": true,
    "1.3.3": true,
    "1.4.0-rc.1": true,
    "1.10.0": true,
    "2.0.0": true,
    "1.3.0-rc.1": false,
    "1.2.3": false,
    "0.16.0": false,
  };
  for (const [version, taken] of Object.entries(verdicts)) {
    const printed = `Version:        ${version}\nGo version:     go1.25.0\n`;
    assertEquals(isOrasNewEnough(printed), taken, version);
  }
  assertEquals(isOrasNewEnough("Usage: something else 1.3.0"), false);
});
