/**
 * The units of docs/fleets.md, as systemd itself reads them.
 */
import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { run } from "../../lib/system/process.ts";
import { ROOT } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";
import { needs } from "../support/parts.ts";

Deno.test({
  name: "systemd finds nothing wrong with the units, nor with their instances",
  ...needs("systemd"),
  async fn() {
    await using dir = await temporaryDir();
    const program = join(dir.path, "toolsmith");
    await Deno.writeTextFile(program, "#!/bin/sh\n", { mode: 0o755 });
    const units: string[] = [];
    for (const { name } of Deno.readDirSync(`${ROOT}/docs/systemd`)) {
      const text = await Deno.readTextFile(`${ROOT}/docs/systemd/${name}`);
      const unit = join(dir.path, name.replace("@.", "@uname."));
      // systemd checks that the program is there.
      const here = text.replace("/usr/local/bin/toolsmith", program);
      await Deno.writeTextFile(unit, here);
      units.push(unit);
    }
    const { code, stdout, stderr } = await run("systemd-analyze", {
      args: ["verify", "--man=no", "--generators=no", ...units.sort()],
    });
    assertEquals([code, stdout, stderr], [0, "", ""]);
    assertEquals(units.length, 3);
  },
});
