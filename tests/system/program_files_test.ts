import { assertEquals } from "@std/assert";
import { processEnvironment } from "../../lib/environment.ts";
import {
  denoCacheDir,
  listProgramFiles,
} from "../../lib/system/program_files.ts";
import { PROJECT_ROOT } from "../../scripts/deno.ts";
import { replaceMethod } from "../support/replace_method.ts";

const MODULES = ["mod.ts", "cli.ts", "deno.json", "deno.lock", "lib"];
const SELF = "lib/system/program_files.ts";
const main = "file:///w/a%20b.ts";

Deno.test("listProgramFiles() lists Deno, the main module and Toolsmith's own modules", () => {
  const deno = Deno.execPath();
  const below = (dir: string) => MODULES.map((name) => `${dir}/${name}`);
  const cases: [string, string[]][] = [
    [`file:///opt/tool%20smith/${SELF}`, below("/opt/tool smith")],
    // A bundle, under any name.
    ["file:///opt/toolsmith.js", ["/opt/toolsmith.js"]],
    ["file:///opt/own_files.ts", ["/opt/own_files.ts"]],
    // In Deno's cache.
    [`https://jsr.io/@fountain/toolsmith/1.0.0/${SELF}`, []],
  ];
  for (const [self, expected] of cases) {
    assertEquals(listProgramFiles({ main, self }), [
      deno,
      "/w/a b.ts",
      ...expected,
    ]);
  }
  const own = listProgramFiles({ main: "https://a.example/main.ts" });
  assertEquals(own, [deno, ...below(PROJECT_ROOT)]);
  assertEquals(listProgramFiles().length, 2 + MODULES.length);
});

Deno.test("denoCacheDir() returns DENO_DIR, or the user's cache directory", () => {
  const found = (variables: Record<string, string>) => {
    using _process = replaceMethod(processEnvironment, {
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
