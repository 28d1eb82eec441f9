import { assertEquals } from "@std/assert";
import { processEnvironment } from "../../lib/environment.ts";
import { denoCacheDir, ownFiles } from "../../lib/system/own_files.ts";
import { ROOT } from "../../scripts/deno.ts";
import { replace } from "../support/replace.ts";

const MODULES = ["mod.ts", "cli.ts", "deno.json", "deno.lock", "lib"];
const SELF = "lib/system/own_files.ts";
const main = "file:///w/a%20b.ts";

Deno.test("ownFiles names Deno, what was started, and Toolsmith's modules", () => {
  const deno = Deno.execPath();
  const below = (dir: string) => MODULES.map((name) => `${dir}/${name}`);
  const cases: [string, string[]][] = [
    [`file:///opt/tool%20smith/${SELF}`, below("/opt/tool smith")],
    // The single file: whatever it is called.
    ["file:///opt/toolsmith.js", ["/opt/toolsmith.js"]],
    ["file:///opt/own_files.ts", ["/opt/own_files.ts"]],
    // Deno's cache has it.
    [`https://jsr.io/@fountain/toolsmith/1.0.0/${SELF}`, []],
  ];
  for (const [self, expected] of cases) {
    assertEquals(ownFiles({ main, self }), [deno, "/w/a b.ts", ...expected]);
  }
  const own = ownFiles({ main: "https://a.example/main.ts" });
  assertEquals(own, [deno, ...below(ROOT)]);
  assertEquals(ownFiles().length, 2 + MODULES.length);
});

Deno.test("denoCacheDir is where DENO_DIR says, else the user's cache", () => {
  const found = (variables: Record<string, string>) => {
    using _process = replace(processEnvironment, {
      get: (name: string) => variables[name],
    });
    return denoCacheDir();
  };
  const HOME = "/home/me";
  const XDG_CACHE_HOME = "/caches";
  const mac = Deno.build.os === "darwin";
  const usual = mac ? "/home/me/Library/Caches/deno" : "/home/me/.cache/deno";
  assertEquals(found({ HOME }), usual);
  const xdg = found({ HOME, XDG_CACHE_HOME });
  assertEquals(xdg, mac ? usual : "/caches/deno");
  assertEquals(found({ HOME, XDG_CACHE_HOME, DENO_DIR: "/d" }), "/d");
  assertEquals(found({}), undefined);
});
