import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { clearSetIdBits } from "../../lib/vm/_set_id.ts";
import { temporaryDir } from "../support/directory.ts";

Deno.test({
  name: "no file of an export runs as its owner, and nothing else is changed",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const at = (name: string) => join(dir.path, name);
    const modes: [name: string, before: number, after: number][] = [
      ["out/both", 0o6755, 0o755],
      ["out/user", 0o4711, 0o711],
      ["out/group", 0o2640, 0o640],
      ["out/plain", 0o1604, 0o1604],
      ["out/deep/closed/user", 0o4755, 0o755],
      ["other/user", 0o4755, 0o755],
      ["work/user", 0o4755, 0o4755],
      ["beside/user", 0o4755, 0o4755],
    ];
    for (const name of ["out/deep/closed", "other", "work", "beside"]) {
      await Deno.mkdir(at(name), { recursive: true });
    }
    for (const [name, before] of modes) {
      await Deno.writeTextFile(at(name), "");
      await Deno.chmod(at(name), before);
    }
    await Deno.symlink(at("beside"), at("out/dir"));
    await Deno.symlink(at("beside/user"), at("out/link"));
    // The guest has closed it to its owner, and left it to others.
    await Deno.chmod(at("out/deep/closed"), 0o055);
    await Deno.chmod(at("out/deep"), 0o2755);
    await clearSetIdBits([
      { path: at("out"), tag: "out", writable: true },
      { path: at("work"), tag: "work", writable: false },
      { path: at("gone"), tag: "gone", writable: true },
      { path: at("other"), tag: "other", writable: true },
    ]);
    const mode = (name: string) => Deno.lstatSync(at(name)).mode! & 0o7777;
    assertEquals(
      modes.map(([name]) => [name, mode(name).toString(8)]),
      modes.map(([name, , after]) => [name, after.toString(8)]),
    );
    assertEquals(mode("out/deep/closed"), 0o755);
    assertEquals(mode("out/deep"), 0o2755);
    await clearSetIdBits([]);
  },
});
