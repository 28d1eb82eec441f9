import { assertEquals } from "@std/assert";
import { expectFailure } from "../support/expect_failure.ts";
import { performCommand, recordedIo } from "../support/recorded_io.ts";
import { makeLocalImage } from "../support/local_image.ts";
import { requires } from "../support/parts.ts";

const needsQemuImg = requires("qemuImg");

Deno.test({
  name: "init prints the manifest's path on stdout and what it wrote on stderr",
  ...needsQemuImg,
  async fn() {
    await using work = await makeLocalImage();
    const { image, sha256, manifest: path } = work;
    const init = async (...flags: string[]) => {
      const recorded = recordedIo();
      const args = ["init", "--file", image, ...work.named, ...flags];
      assertEquals(await performCommand(args, recorded), 0);
      return { told: recorded.stderrText(), result: recorded.results[0] };
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
    await expectFailure("usage", () => performCommand(again, recorded));
  },
});
