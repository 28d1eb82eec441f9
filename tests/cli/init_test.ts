import { assertEquals } from "@std/assert";
import { failure } from "../support/failure.ts";
import { perform, recordedIo } from "../support/io.ts";
import { localImage } from "../support/local_image.ts";
import { needs } from "../support/parts.ts";

const needsQemuImg = needs("qemuImg");

Deno.test({
  name: "init says what it has written, and prints the manifest's path",
  ...needsQemuImg,
  async fn() {
    await using work = await localImage();
    const { image, sha256, manifest: path } = work;
    const init = async (...flags: string[]) => {
      const recorded = recordedIo();
      const args = ["init", "--file", image, ...work.named, ...flags];
      assertEquals(await perform(args, recorded), 0);
      return { told: recorded.told(), result: recorded.results[0] };
    };
    const { told, result } = await init("--name", "demo");
    assertEquals(told, `created: demo, sha256 ${sha256}\n`);
    const digest = `sha256:${sha256}`;
    assertEquals(result, {
      json: false,
      fields: { outcome: "created", path, name: "demo", digest },
      text: path,
    });
    assertEquals(JSON.parse(await Deno.readTextFile(path)).image.name, "demo");
    const quiet = await init("--update", "--quiet");
    assertEquals([quiet.told, quiet.result.fields.name], ["", "demo"]);
    const json = await init("--update", "--json");
    assertEquals([json.told, json.result.json], ["", true]);
    const recorded = recordedIo();
    const again = ["init", "--file", image, ...work.named];
    await failure("usage", () => perform(again, recorded));
  },
});
