/**
 * Tests that setup installs each program once, atomically and verified, and reports
 * what it cannot install.
 */
import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { copy } from "@std/fs/copy";
import { ToolsmithError } from "../../lib/errors.ts";
import { type ProcessResult, runProcess } from "../../lib/system/process.ts";
import { canGoBuild } from "../../scripts/setup/go.ts";
import { isOrasNewEnough } from "../../scripts/setup/parts.ts";
import { fetchVerified } from "../../scripts/setup/release.ts";
import { PROJECT_ROOT } from "../../scripts/deno.ts";
import { foundTools, requires } from "../support/parts.ts";

/** Copies the setup scripts to a host with few programs. */
async function withCopies(
  count: number,
  programs: string[],
  test: (copies: Copy[]) => Promise<void>,
): Promise<void> {
  const dir = await Deno.realPath(await Deno.makeTempDir());
  try {
    await Deno.mkdir(`${dir}/bin`);
    for (const name of programs) {
      await Deno.symlink(await which(name), `${dir}/bin/${name}`);
    }
    const env = {
      PATH: `${dir}/bin`,
      TOOLSMITH_ORAS: "",
      TOOLSMITH_TEST_ACTIONLINT: "",
      TOOLSMITH_TEST_REGISTRY: "",
      // Without Go on PATH, only the test's module proxy offers one.
      ...programs.includes("go") ? {} : { GOPROXY: "http://127.0.0.1:1" },
    };
    const copies: Copy[] = [];
    for (let index = 0; index < count; index++) {
      const root = `${dir}/copy ${index}`;
      for (const part of ["lib", "scripts", "tools"]) {
        await copy(`${PROJECT_ROOT}/${part}`, `${root}/${part}`);
      }
      copies.push({
        root,
        setup: (...names) => setup(root, names, env),
        setupWith: (more, ...names) => setup(root, names, { ...env, ...more }),
      });
    }
    await test(copies);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

interface Copy {
  root: string;
  setup: (...parts: string[]) => Promise<ProcessResult>;
  setupWith: (
    env: Record<string, string>,
    ...parts: string[]
  ) => Promise<ProcessResult>;
}

function setup(root: string, names: string[], env: Record<string, string>) {
  return runProcess(Deno.execPath(), {
    args: ["run", "-A", "--no-config", `${root}/scripts/setup.ts`, ...names],
    env: { ...env, NO_COLOR: "1" },
    timeoutMs: 600_000,
  });
}

async function which(program: string): Promise<string> {
  for (const dir of Deno.env.get("PATH")!.split(":")) {
    const path = await Deno.realPath(`${dir}/${program}`).catch(() => "");
    if (path) return path;
  }
  throw new Error(`${program} is not on PATH`);
}

/** The names in the directory of programs, without the lock. */
function brought(root: string): string[] {
  return [...Deno.readDirSync(`${root}/.cache/tools`)]
    .map(({ name }) => name)
    .filter((name) => name !== ".lock");
}

const onUnix = Deno.build.os === "windows" ? { ignore: true } : {};

Deno.test({
  name: "setUpTools() prints nothing when every program is found",
  ...requires("oras", "registry", "actionlint"),
  async fn() {
    const env = { TOOLSMITH_ORAS: foundTools.oras! };
    const again = await setup(
      PROJECT_ROOT,
      ["oras", "registry", "actionlint"],
      env,
    );
    assertEquals([again.code, again.stdout, again.stderr], [0, "", ""]);
  },
});

Deno.test({
  name:
    "setUpTools() builds a tool once per checkout when several setups run at once",
  ignore: Deno.build.os === "windows" ||
    !await canGoBuild("go", `${PROJECT_ROOT}/tools/actionlint`),
  fn: () =>
    withCopies(2, ["go"], async ([one, two]) => {
      // Left by a killed setup.
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
        assertEquals(
          (await runProcess(program, { args: ["-version"] })).code,
          0,
        );
        assertEquals((await setup("actionlint")).stderr, "");
      }
    }),
});

Deno.test({
  name:
    "setUpTools() prints how to install a missing tool, and rejects an unknown one",
  ...onUnix,
  fn: () =>
    withCopies(1, [], async ([{ setup }]) => {
      const { code, stderr } = await setup("actionlint");
      assertEquals(code, 1);
      assertMatch(
        stderr,
        /^setup: actionlint is missing: install Go 1\.\d+ or newer, .*\n$/m,
      );
      const wrong = await setup("orsa");
      assertEquals(wrong.code, 2);
      assertMatch(wrong.stderr, /no part "orsa": use one of oras, /);
    }),
});

Deno.test({
  name: "setUpTools() downloads the pinned oras release when Go is missing",
  ...requires("oras"),
  ...onUnix,
  fn: () =>
    withCopies(1, ["tar", "gzip"], async ([{ root, setup }]) => {
      const archive = `${root}/release.tar.gz`;
      await Deno.copyFile(foundTools.oras!, `${root}/oras`);
      await runProcess("tar", { args: ["-czf", archive, "oras"], cwd: root });
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
      assertMatch(
        refused.stderr,
        /does not match its pinned SHA-256: expected 0000/,
      );
      assertEquals(brought(root), []);

      await pin(await sha256(bytes));
      const taken = await setup("oras");
      assertMatch(taken.stderr, /^setup: downloading oras$/m);
      const [name] = brought(root);
      const program = `${root}/.cache/tools/${name}/oras`;
      assertEquals((await runProcess(program, { args: ["version"] })).code, 0);
    }),
});

Deno.test({
  name:
    "setUpTools() downloads the pinned Go toolchain from the module proxy when Go is missing",
  ...requires("unzip"),
  ...onUnix,
  fn: () =>
    withCopies(1, ["unzip", "sh"], async ([{ root, setupWith }]) => {
      const pins = JSON.parse(
        await Deno.readTextFile(`${root}/tools/go.json`),
      );
      const arch = Deno.build.arch === "x86_64" ? "amd64" : "arm64";
      const system = `${Deno.build.os}-${arch}`;
      const module = `v0.0.1-go${pins.version}.${system}`;
      const inner = `golang.org/toolchain@${module}`;
      // A fake Go, which prints its version and builds nothing.
      const archive = storedZip({
        [`${inner}/bin/go`]:
          '#!/bin/sh\n[ "$1" = env ] && echo go1.99.0 && exit\necho "it ran" >&2\nexit 1\n',
        [`${inner}/pkg/tool/${system.replace("-", "_")}/compile`]: "",
        [`${inner}/src/_go.mod`]: "module std\n",
        [`${inner}/src/cmd/_go.mod`]: "module cmd\n",
      });
      const asked: string[] = [];
      await using server = Deno.serve(
        { hostname: "127.0.0.1", port: 0, onListen: () => {} },
        (request) => {
          asked.push(new URL(request.url).pathname);
          return new Response(archive);
        },
      );
      const env = { GOPROXY: `http://127.0.0.1:${server.addr.port},direct` };
      const refused = await setupWith(env, "actionlint");
      assertMatch(
        refused.stderr,
        /downloading Go \(70 MB\): .* does not match its pinned SHA-256/,
      );
      assertEquals(brought(root), []);

      pins.sha256[system] = await sha256(archive);
      await Deno.writeTextFile(
        `${root}/tools/go.json`,
        JSON.stringify(pins),
      );
      asked.length = 0;
      const taken = await setupWith(env, "actionlint", "registry");
      assertMatch(
        taken.stderr,
        /building actionlint with Go: go build failed: it ran/,
      );
      assertMatch(
        taken.stderr,
        /building registry with Go: go build failed: it ran/,
      );
      assertEquals(asked.length, 1);
      assertEquals(asked.at(-1), `/golang.org/toolchain/@v/${module}.zip`);
      const [dir, ...others] = brought(root);
      assertEquals(others, []);
      const source = `${root}/.cache/tools/${dir}/src`;
      assertEquals(await Deno.readTextFile(`${source}/go.mod`), "module std\n");
    }),
});

/** Makes a ZIP archive of uncompressed files (APPNOTE 4.3). */
function storedZip(files: Record<string, string>): Uint8Array<ArrayBuffer> {
  const utf8 = new TextEncoder();
  const parts: Uint8Array[] = [];
  const directory: Uint8Array[] = [];
  let offset = 0;
  const record = (signature: number, fields: [number, number][]) => {
    const view = new DataView(new ArrayBuffer(64));
    view.setUint32(0, signature, true);
    let at = 4;
    for (const [size, value] of fields) {
      if (size === 2) view.setUint16(at, value, true);
      else view.setUint32(at, value, true);
      at += size;
    }
    return new Uint8Array(view.buffer, 0, at);
  };
  for (const [path, text] of Object.entries(files)) {
    const [name, data] = [utf8.encode(path), utf8.encode(text)];
    const common: [number, number][] = [
      ...[[2, 20], [2, 0], [2, 0], [2, 0], [2, 33]] as [number, number][],
      ...[[4, crc32(data)], [4, data.length]] as [number, number][],
      ...[[4, data.length], [2, name.length], [2, 0]] as [number, number][],
    ];
    const header = record(0x04034b50, common);
    directory.push(
      record(0x02014b50, [
        [2, 20],
        ...common,
        ...[[2, 0], [2, 0], [2, 0], [4, 0], [4, offset]] as [number, number][],
      ]),
      name,
    );
    parts.push(header, name, data);
    offset += header.length + name.length + data.length;
  }
  const size = directory.reduce((sum, { length }) => sum + length, 0);
  const count = Object.keys(files).length;
  const end = record(0x06054b50, [
    ...[[2, 0], [2, 0], [2, count], [2, count]] as [number, number][],
    ...[[4, size], [4, offset], [2, 0]] as [number, number][],
  ]);
  const all = [...parts, ...directory, end];
  const zip = new Uint8Array(all.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of all) {
    zip.set(part, at);
    at += part.length;
  }
  return zip;
}

function crc32(bytes: Uint8Array): number {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc >>> 1 ^ 0xedb88320 & -(crc & 1);
  }
  return ~crc >>> 0;
}

Deno.test("fetchVerified() rejects a download that does not match its pinned digest", async () => {
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
  assertEquals(await fetchVerified(`${url}/there`, right), bytes);
  const mismatch = await assertRejects(
    () => fetchVerified(`${url}/there`, "ab".repeat(32)),
    ToolsmithError,
    `expected ${"ab".repeat(32)}, got ${right}`,
  );
  assertEquals(mismatch.code, "checksum_mismatch");
  await assertRejects(
    () => fetchVerified(`${url}/elsewhere`, right),
    ToolsmithError,
    "answers 404",
  );
});

async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

Deno.test("isOrasNewEnough() accepts 1.3.0 and newer", () => {
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
