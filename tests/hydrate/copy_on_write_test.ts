import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { hydrate } from "../../lib/hydrate/hydrate.ts";
import { parseManifest } from "../../lib/manifest/manifest.ts";
import { runProcess } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { requires } from "../support/parts.ts";
import { makeQcow2 } from "../support/workspace.ts";

const MIB = 1024 * 1024;
const { ignore } = requires("qemuImg");

for (const type of ["btrfs", "xfs"]) {
  Deno.test({
    name:
      `hydrate copies a local image without using disk space on ${type}, which supports copy-on-write`,
    ignore: ignore || requires("root").ignore,
    async fn() {
      await using dir = await temporaryDir();
      const [disk, mount] = [join(dir.path, "disk"), join(dir.path, "mount")];
      await Deno.mkdir(mount);
      await Deno.writeFile(disk, new Uint8Array());
      await Deno.truncate(disk, 400 * MIB);
      const done = (program: string, ...args: string[]) =>
        runProcess(program, { args }).then(
          ({ code }) => code === 0,
          () => false,
        );
      const mounted = await done(`mkfs.${type}`, "-q", disk) &&
        await done("mount", "-o", "loop", disk, mount);
      // The host may lack mkfs, and a container may not mount.
      if (!mounted) return console.error(`skipped: no ${type} can be mounted`);
      try {
        const image = join(mount, "image.qcow2");
        const { sha256 } = await makeQcow2(image, 64 * MIB);
        const before = await usedBytes(mount);
        const text = JSON.stringify({
          image: {
            ...{ name: "demo", tarball: "", sha256: "" },
            ...{ qcow2: image, qcow2_sha256: sha256 },
          },
          ...{ tools: {}, operations: [] },
        });
        const manifest = parseManifest(text, join(mount, "tools.json"));
        const placed = await hydrate(manifest, { cache: join(mount, "cache") });
        assertEquals(placed.outcome, "copied");
        const grown = await usedBytes(mount) - before;
        assert(grown < 16 * MIB, `${grown} bytes more are in use`);
        // Changing the original does not change the copy.
        await Deno.writeFile(image, new Uint8Array(9));
        const again = await hydrate(manifest, {
          ...{ cache: join(mount, "cache"), verify: true },
        });
        assertEquals(again.outcome, "cached");
      } finally {
        await done("umount", mount);
      }
    },
  });
}

async function usedBytes(mount: string): Promise<number> {
  await runProcess("sync", { args: ["-f", mount] });
  const args = ["--output=used", "--block-size=1", mount];
  const { stdout } = await runProcess("df", { args });
  return Number(stdout.split("\n")[1]);
}
