/**
 * Builds the Containerfile with buildah and runs the image as a cluster would. A
 * server on loopback replaces the releases of Toolsmith and oras, and mmdebstrap
 * builds the base image, which includes Deno to run the bundled program.
 */
import { assertEquals, assertMatch } from "@std/assert";
import { dirname, join } from "@std/path";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { type ProcessResult, runProcess } from "../../lib/system/process.ts";
import { VERSION } from "../../lib/version.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";
import release from "../../tools/oras/release.json" with { type: "json" };
import { buildTestGuest, needsGuest } from "../support/guest.ts";
import { foundTools, requires } from "../support/parts.ts";
import { startRegistry } from "../support/registry.ts";
import { orasPush, TYPE, workspace } from "../support/workspace.ts";

const CONTAINERFILE = await Deno.readTextFile(`${PROJECT_ROOT}/Containerfile`);
const NAME = `toolsmith-${Deno.build.target}`;
const ARCH = Deno.build.arch === "x86_64" ? "amd64" : "arm64";

Deno.test("Containerfile pins the current Toolsmith version and the same oras as the setup script", () => {
  const args = Object.fromEntries(
    [...CONTAINERFILE.matchAll(/^ARG (\w+)=(.*)$/gm)]
      .map(([, name, value]) => [name, value]),
  );
  const { archives, version } = release;
  assertEquals(args.VERSION, VERSION);
  assertEquals(args.ORAS_VERSION, version);
  assertEquals(args.ORAS_SHA256_AMD64, archives["linux-x86_64"].sha256);
  assertEquals(args.ORAS_SHA256_ARM64, archives["linux-aarch64"].sha256);
});

Deno.test({
  name: "Containerfile's container runs toolsmith and a VM as uid 1000",
  ignore: requires("buildah", "oras", "registry").ignore || needsGuest.ignore,
  async fn(t) {
    await using work = await workspace();
    const { dir } = work;
    await using registry = await startRegistry();
    const buildah = (args: string[], options = {}) =>
      runProcess("buildah", {
        args: [
          ...["--storage-driver=vfs", `--root=${dir}/root`],
          ...[`--runroot=${dir}/runroot`, ...args],
        ],
        env: { BUILDAH_ISOLATION: "chroot" },
        timeoutMs: 3_600_000,
        ...options,
      });
    await makeBase(join(dir, "base"));
    const base = ["build", "--quiet", "--tag=base", "--file=-"];
    const input = "FROM scratch\nCOPY . /\n";
    succeeded(await buildah([...base, join(dir, "base")], { input }));
    const files = join(dir, "release");
    await makeRelease(files);
    await using server = Deno.serve(
      { hostname: "127.0.0.1", port: 0, onListen() {} },
      async ({ url }) => {
        const path = join(files, new URL(url).pathname);
        const body = await Deno.readFile(path).catch(() => undefined);
        return new Response(body, { status: body ? 200 : 404 });
      },
    );
    const address = `http://127.0.0.1:${server.addr.port}`;
    const build = (orasDigest: string) =>
      buildah([
        ...["build", "--quiet", "--network=host", "--tag=toolsmith"],
        "--build-arg=BASE=localhost/base",
        `--build-arg=RELEASE=${address}`,
        `--build-arg=ORAS_RELEASE=${address}`,
        `--build-arg=ORAS_SHA256_${ARCH.toUpperCase()}=${orasDigest}`,
        "-",
      ], { input: CONTAINERFILE });

    await t.step(
      "Containerfile build fails when the oras digest differs",
      async () => {
        const { code, stderr } = await build("0".repeat(64));
        assertEquals(code === 0, false);
        assertMatch(stderr, /checksum did NOT match/);
      },
    );

    const oras = join(files, `oras_${release.version}_linux_${ARCH}.tar.gz`);
    succeeded(await build(await sha256OfChunks(readFileChunks(oras))));
    const container = succeeded(await buildah(["from", "toolsmith"])).trim();
    const inside = (args: string[]) =>
      buildah(["run", `--volume=${dir}/work:/work:ro`, container, ...args]);

    await t.step(
      "Containerfile image has the documented configuration",
      async () => {
        const text = succeeded(await buildah(["inspect", "toolsmith"]));
        const { config } = JSON.parse(text).Docker;
        assertEquals(config.Entrypoint, ["toolsmith"]);
        assertEquals(config.User, "toolsmith");
        assertEquals(config.WorkingDir, "/work");
        assertEquals(Object.keys(config.Volumes), ["/var/cache/toolsmith"]);
      },
    );

    await Deno.mkdir(join(dir, "work", ".toolsmith"), { recursive: true });
    await Deno.copyFile(await buildTestGuest(), join(dir, "guest.qcow2"));
    const layers = [`guest.qcow2:${TYPE}`];
    await orasPush(`${registry.host}/owner/guest:1`, layers, { cwd: dir });
    await work.manifest({
      name: "guest",
      qcow2: `oci://${registry.host}/owner/guest:1`,
      qcow2_sha256: await sha256OfChunks(
        readFileChunks(join(dir, "guest.qcow2")),
      ),
    });
    const manifest = join(".toolsmith", "tools.json");
    await Deno.copyFile(join(dir, manifest), join(dir, "work", manifest));
    for (const path of [dir, join(dir, "work")]) await Deno.chmod(path, 0o755);

    await t.step("doctor reports no failure in the container", async () => {
      const { code, stdout, stderr } = await inside(["toolsmith", "doctor"]);
      assertEquals(code, 0, stdout + stderr);
    });

    await t.step(
      "run returns the tool's output and exit status in the container",
      async () => {
        const command = ["sh", "-c", "uname -n; exit 7"];
        // On a busy host a guest may print nothing for minutes.
        const run = ["toolsmith", "run", "--boot-timeout", "2400", "--"];
        const ran = await inside([...run, ...command]);
        assertEquals([ran.code, ran.stdout], [7, "toolsmith\n"], ran.stderr);
        assertEquals(succeeded(await inside(["id", "-u"])), "1000\n");
      },
    );
  },
});

/** Builds a base image like `debian:bookworm-slim`, plus Deno. */
async function makeBase(dir: string) {
  const hidden = ["doc", "locale", "man"]
    .map((name) => `--dpkgopt=path-exclude=/usr/share/${name}/*`);
  succeeded(
    await runProcess("unshare", {
      args: [
        // The mount namespace removes mounts of mmdebstrap, even if killed.
        ...["--mount", "mmdebstrap", "--quiet", "--mode=root"],
        ...["--format=directory", "--variant=minbase", ...hidden],
        ...["bookworm", dir],
      ],
      timeoutMs: 3_600_000,
    }),
  );
  await Deno.copyFile(Deno.execPath(), join(dir, "usr/local/bin/deno"));
}

/** Creates the release files of Toolsmith and oras. */
async function makeRelease(dir: string) {
  await Deno.mkdir(dir);
  const program = join(dir, NAME);
  const script = [
    "bundle",
    "--quiet",
    "--output",
    program,
    `${PROJECT_ROOT}/cli.ts`,
  ];
  const args = await withImportMap(script);
  succeeded(await runProcess(Deno.execPath(), { args }));
  const text = await Deno.readTextFile(program);
  const first = "#!/usr/bin/env -S deno run --quiet -A --ext=js";
  await Deno.writeTextFile(program, `${first}\n${text}`);
  const digest = await sha256OfChunks(readFileChunks(program));
  await Deno.writeTextFile(`${program}.sha256`, `${digest}  ${NAME}\n`);
  await Deno.copyFile(`${PROJECT_ROOT}/install.sh`, join(dir, "install.sh"));
  const archive = join(dir, `oras_${release.version}_linux_${ARCH}.tar.gz`);
  const packed = ["-C", dirname(foundTools.oras!), "-czf", archive, "oras"];
  succeeded(await runProcess("tar", { args: packed }));
}

function succeeded({ code, stdout, stderr }: ProcessResult): string {
  assertEquals(code, 0, stderr);
  return stdout;
}
