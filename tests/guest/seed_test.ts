import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import fc from "fast-check";
import { fatImage } from "../../lib/guest/_fat_image.ts";
import { seedImage } from "../../lib/guest/seed.ts";
import { run } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { needs } from "../support/parts.ts";

const env = { PATH: `${Deno.env.get("PATH")}:/usr/sbin:/sbin` };

async function output(program: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(program, { args, env });
  assertEquals(code, 0, stdout + stderr);
  return stdout;
}

Deno.test({
  name: "the seed is a file system in which cloud-init finds its files",
  ...needs("guest"),
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "seed.img");
    await Deno.writeFile(image, seedImage());
    assertMatch(await output("mlabel", "-s", "-i", image), /CIDATA/);
    assertMatch(await output("fsck.vfat", "-n", image), /3\/|4 files/);
    const read = (name: string) => output("mtype", "-i", image, `::/${name}`);
    const { "instance-id": id } = JSON.parse(await read("meta-data"));
    assertEquals(id, "toolsmith");
    assertEquals(JSON.parse(await read("network-config")).ethernets, {});
    const [first, ...rest] = (await read("user-data")).split("\n");
    assertEquals(first, "#cloud-config");
    const config = JSON.parse(rest.join("\n"));
    // Nothing is installed, and nobody is let in.
    const keys = Object.keys(config).join(" ");
    assert(!/user|pass|chpasswd|authorized|package|runcmd/.test(keys), keys);
    assertEquals(seedImage().length % 512, 0);
  },
});

Deno.test({
  name: "any few files are written so that others read them",
  ...needs("guest"),
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "a.img");
    const name = fc.stringMatching(/^[a-z][a-z-]{0,40}[a-z]$/);
    const files = fc.dictionary(
      name,
      fc.string({ minLength: 1, maxLength: 3000 }),
      {
        minKeys: 1,
        maxKeys: 5,
      },
    );
    await fc.assert(
      fc.asyncProperty(files, async (files) => {
        await Deno.writeFile(image, fatImage("LABEL", files));
        await output("fsck.vfat", "-n", image);
        for (const [name, text] of Object.entries(files)) {
          const copy = join(dir.path, "copy");
          await output("mcopy", "-o", "-i", image, `::/${name}`, copy);
          assertEquals(await Deno.readTextFile(copy), text.toWellFormed());
        }
      }),
      { numRuns: 15 },
    );
  },
});
