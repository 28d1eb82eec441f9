/**
 * The Containerfile, built by buildah and used as a cluster would. A release on
 * loopback stands in for those of Toolsmith and oras, and a tree of mmdebstrap
 * for Debian's image. The program in that release is the single file, and the
 * base has the Deno that starts it.
 */
import { assertEquals, assertMatch } from "@std/assert";
import { dirname, join } from "@std/path";
import { fileChunks, sha256 } from "../../lib/system/digest.ts";
import { type Output, run } from "../../lib/system/process.ts";
import { VERSION } from "../../lib/version.ts";
import { denoArgs, ROOT } from "../../scripts/deno.ts";
import release from "../../tools/oras/release.json" with { type: "json" };
import { guest, needsGuest } from "../support/guest.ts";
import { needs, parts } from "../support/parts.ts";
import { startRegistry } from "../support/registry.ts";
import { orasPush, TYPE, workspace } from "../support/workspace.ts";

const CONTAINERFILE = await Deno.readTextFile(`${ROOT}/Containerfile`);
const NAME = `toolsmith-${Deno.build.target}`;
const ARCH = Deno.build.arch === "x86_64" ? "amd64" : "arm64";

Deno.test("the Containerfile pins this version, and oras as the set-up does", () => {
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
  name: "an image of the Containerfile runs a tool in a guest, without root",
  ignore: needs("buildah", "oras", "registry").ignore || needsGuest.ignore,
  async fn(t) {
    await using work = await workspace();
    const { dir } = work;
    await using registry = await startRegistry();
    const buildah = (args: string[], options = {}) =>
      run("buildah", {
        args: [
          ...["--storage-driver=vfs", `--root=${dir}/root`],
          ...[`--runroot=${dir}/runroot`, ...args],
        ],
        env: { BUILDAH_ISOLATION: "chroot" },
        timeoutMs: 300_000,
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

    await t.step("no image comes of an oras whose digest differs", async () => {
      const { code, stderr } = await build("0".repeat(64));
      assertEquals(code === 0, false);
      assertMatch(stderr, /checksum did NOT match/);
    });

    const oras = join(files, `oras_${release.version}_linux_${ARCH}.tar.gz`);
    succeeded(await build(await sha256(fileChunks(oras))));
    const container = succeeded(await buildah(["from", "toolsmith"])).trim();
    const inside = (args: string[]) =>
      buildah(["run", `--volume=${dir}/work:/work:ro`, container, ...args]);

    await t.step(
      "its configuration is what the documentation says",
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
    await Deno.copyFile(await guest(), join(dir, "guest.qcow2"));
    const layers = [`guest.qcow2:${TYPE}`];
    await orasPush(`${registry.host}/owner/guest:1`, layers, { cwd: dir });
    await work.manifest({
      name: "guest",
      qcow2: `oci://${registry.host}/owner/guest:1`,
      qcow2_sha256: await sha256(fileChunks(join(dir, "guest.qcow2"))),
    });
    const manifest = join(".toolsmith", "tools.json");
    await Deno.copyFile(join(dir, manifest), join(dir, "work", manifest));
    for (const path of [dir, join(dir, "work")]) await Deno.chmod(path, 0o755);

    await t.step("doctor lacks nothing there", async () => {
      const { code, stdout, stderr } = await inside(["toolsmith", "doctor"]);
      assertEquals(code, 0, stdout + stderr);
    });

    await t.step("run has the tool's output and exit status", async () => {
      const command = ["sh", "-c", "uname -n; exit 7"];
      const ran = await inside(["toolsmith", "run", "--", ...command]);
      assertEquals([ran.code, ran.stdout], [7, "toolsmith\n"], ran.stderr);
      assertEquals(succeeded(await inside(["id", "-u"])), "1000\n");
    });
  },
});

/** What Docker Hub has as `debian:bookworm-slim`, and Deno besides. */
async function makeBase(dir: string) {
  const hidden = ["doc", "locale", "man"]
    .map((name) => `--dpkgopt=path-exclude=/usr/share/${name}/*`);
  succeeded(
    await run("unshare", {
      args: [
        // What is mounted in the tree goes with mmdebstrap, however that ends.
        ...["--mount", "mmdebstrap", "--quiet", "--mode=root"],
        ...["--format=directory", "--variant=minbase", ...hidden],
        ...["bookworm", dir],
      ],
      timeoutMs: 300_000,
    }),
  );
  await Deno.copyFile(Deno.execPath(), join(dir, "usr/local/bin/deno"));
}

/** The files of both releases. */
async function makeRelease(dir: string) {
  await Deno.mkdir(dir);
  const program = join(dir, NAME);
  const script = ["bundle", "--quiet", "--output", program, `${ROOT}/cli.ts`];
  const args = await denoArgs(script);
  succeeded(await run(Deno.execPath(), { args }));
  const text = await Deno.readTextFile(program);
  const first = "#!/usr/bin/env -S deno run --quiet -A --ext=js";
  await Deno.writeTextFile(program, `${first}\n${text}`);
  const digest = await sha256(fileChunks(program));
  await Deno.writeTextFile(`${program}.sha256`, `${digest}  ${NAME}\n`);
  await Deno.copyFile(`${ROOT}/install.sh`, join(dir, "install.sh"));
  const archive = join(dir, `oras_${release.version}_linux_${ARCH}.tar.gz`);
  const packed = ["-C", dirname(parts.oras!), "-czf", archive, "oras"];
  succeeded(await run("tar", { args: packed }));
}

function succeeded({ code, stdout, stderr }: Output): string {
  assertEquals(code, 0, stderr);
  return stdout;
}
