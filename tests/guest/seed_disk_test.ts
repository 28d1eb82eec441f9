import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import fc from "fast-check";
import { fatImage } from "../../lib/guest/_fat_image.ts";
import { seedDiskImage } from "../../lib/guest/seed_disk.ts";
import { findProgram } from "../../lib/system/find_program.ts";
import { runProcess } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { requires } from "../support/parts.ts";
import { waitUntil } from "../support/wait_until.ts";

const env = { PATH: `${Deno.env.get("PATH")}:/usr/sbin:/sbin` };

async function output(program: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await runProcess(program, { args, env });
  assertEquals(code, 0, stdout + stderr);
  return stdout;
}

Deno.test({
  name: "seedDiskImage() makes a FAT disk with the files that cloud-init reads",
  ...requires("guest"),
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "seed.img");
    await Deno.writeFile(image, seedDiskImage());
    assertMatch(await output("mlabel", "-s", "-i", image), /CIDATA/);
    assertMatch(await output("fsck.vfat", "-n", image), /3\/|4 files/);
    const read = (name: string) => output("mtype", "-i", image, `::/${name}`);
    const { "instance-id": id } = JSON.parse(await read("meta-data"));
    assertEquals(id, "toolsmith");
    assertEquals(JSON.parse(await read("network-config")).ethernets, {});
    const [first, ...rest] = (await read("user-data")).split("\n");
    assertEquals(first, "#cloud-config");
    const config = JSON.parse(rest.join("\n"));
    // Installs no package and creates no user.
    const keys = Object.keys(config).join(" ");
    assert(!/user|pass|chpasswd|authorized|package|runcmd/.test(keys), keys);
    // A file that does not fit into its cluster would run into the next one.
    assertEquals(seedDiskImage().length, 27 * 1024);
  },
});

Deno.test({
  name: "the seed agent starts commands that INT and QUIT end",
  ignore: requires("guest").ignore || !await findProgram("python3"),
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "seed.img");
    await Deno.writeFile(image, seedDiskImage());
    const text = await output("mtype", "-i", image, "::/user-data");
    const [[program, ...args]] = JSON.parse(text.replace(/.*/, "")).bootcmd;
    // There is no guest whose host could ask for a command.
    const [status, result] = ["new", "result"].map((it) => join(dir.path, it));
    const script = args.at(-1).replace(
      "serve(open_port())",
      () =>
        `codes = []
    for name in ["INT", "QUIT"]:
        pid = execute("/bin/sh", ["-c", "kill -s %s $$" % name])["pid"]
        codes.append(running[pid][0].wait())
    with open("${status}", "w") as file:
        json.dump(codes, file)
    os.rename("${status}", "${result}")`,
    );
    await output(program, ...args.slice(0, -1), script);
    const written = () => Deno.readTextFile(result).catch(() => "");
    await waitUntil(
      "the agent has run the commands",
      async () => await written() !== "",
    );
    assertEquals(JSON.parse(await written()), [-2, -3]);
  },
});

Deno.test({
  name: "fatImage() writes random files that mtools and fsck.vfat accept",
  ...requires("guest"),
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
