/**
 * Verifies the systemd units of docs/fleets.md with systemd-analyze.
 */
import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { runProcess } from "../../lib/system/process.ts";
import { PROJECT_ROOT } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";
import { requires } from "../support/parts.ts";

Deno.test({
  name: "systemd-analyze accepts the systemd units and their instances",
  ...requires("systemd"),
  async fn() {
    await using dir = await temporaryDir();
    const program = join(dir.path, "toolsmith");
    await Deno.writeTextFile(program, "#!/bin/sh\n", { mode: 0o755 });
    const units: string[] = [];
    for (const { name } of Deno.readDirSync(`${PROJECT_ROOT}/docs/systemd`)) {
      const text = await Deno.readTextFile(
        `${PROJECT_ROOT}/docs/systemd/${name}`,
      );
      const unit = join(dir.path, name.replace("@.", "@uname."));
      // systemd checks that the program exists.
      const here = text.replace("/usr/local/bin/toolsmith", program);
      await Deno.writeTextFile(unit, here);
      units.push(unit);
    }
    const { code, stdout, stderr } = await runProcess("systemd-analyze", {
      args: ["verify", "--man=no", "--generators=no", ...units.sort()],
    });
    assertEquals([code, stdout, stderr], [0, "", ""]);
    assertEquals(units.length, 3);
  },
});
