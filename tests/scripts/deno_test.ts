import { assertEquals } from "@std/assert";
import { copy } from "@std/fs/copy";
import { runProcess } from "../../lib/system/process.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";

/** Copies scripts/deno.ts to a directory and runs code with it there. */
async function ask(
  dir: string,
  code: string,
  env: Record<string, string> = {},
) {
  await Deno.mkdir(`${dir}/scripts`, { recursive: true });
  await Deno.mkdir(`${dir}/lib`);
  // With all that it may import.
  const imported = ["lib/system", "lib/environment.ts", "lib/errors.ts"];
  for (const part of ["scripts/deno.ts", ...imported]) {
    await copy(`${PROJECT_ROOT}/${part}`, `${dir}/${part}`);
  }
  const path = `${dir}/ask.ts`;
  await Deno.writeTextFile(
    path,
    `import { PROJECT_ROOT, withImportMap } from "./scripts/deno.ts";\n${code}`,
  );
  const args = ["run", "--quiet", "--no-config", "-A", path];
  const { stdout, stderr } = await runProcess(Deno.execPath(), {
    args,
    env: { NO_COLOR: "1", TOOLSMITH_DEV_IMPORTS: "", ...env },
  });
  return { stdout: stdout.trimEnd(), stderr: stderr.trimEnd() };
}

Deno.test("scripts/deno.ts finds a project directory with blanks and accents", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/my größter%20project`;
  const { stdout } = await ask(path, "console.log(PROJECT_ROOT)");
  assertEquals(stdout, path);
});

const SHOW = `console.log(JSON.stringify([
  await withImportMap(["run", "-A", "x.ts"]),
  await withImportMap(["test"]),
  await withImportMap(["fmt"]),
]))`;

Deno.test("scripts/deno.ts adds the npm import map and says so once when JSR is unreachable", async () => {
  await using dir = await temporaryDir();
  // A free port of this host could be another test's by now.
  const JSR_URL = "http://127.0.0.1:1/";
  const { stdout, stderr } = await ask(dir.path, SHOW, { JSR_URL });
  const map = `--import-map=${dir.path}/scripts/npm/import_map.json`;
  assertEquals(JSON.parse(stdout), [
    ["run", map, "-A", "x.ts"],
    ["test", map],
    ["fmt"],
  ]);
  assertEquals(
    stderr,
    "jsr.io is unreachable: using @std from npm",
  );
});

Deno.test("scripts/deno.ts adds nothing and prints nothing when JSR is reachable", async () => {
  await using dir = await temporaryDir();
  await using jsr = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    () => new Response("{}"),
  );
  const JSR_URL = `http://127.0.0.1:${jsr.addr.port}/`;
  const { stdout, stderr } = await ask(dir.path, SHOW, { JSR_URL });
  assertEquals(JSON.parse(stdout), [["run", "-A", "x.ts"], ["test"], ["fmt"]]);
  assertEquals(stderr, "");
});

Deno.test("scripts/deno.ts passes its choice to child processes, which do not probe JSR again", async () => {
  await using dir = await temporaryDir();
  const { stdout, stderr } = await ask(
    dir.path,
    `console.log((await withImportMap(["run"])).length)`,
    { TOOLSMITH_DEV_IMPORTS: "npm", JSR_URL: "http://127.0.0.1:1/" },
  );
  assertEquals([stdout, stderr], ["2", ""]);
});

Deno.test("scripts/deno.ts uses the import map in TOOLSMITH_DEV_IMPORTS without probing JSR", async () => {
  await using dir = await temporaryDir();
  const map = `${dir.path}/map.json`;
  const { stdout, stderr } = await ask(dir.path, SHOW, {
    TOOLSMITH_DEV_IMPORTS: map,
    JSR_URL: "http://127.0.0.1:1/",
  });
  assertEquals(JSON.parse(stdout), [
    ["run", `--import-map=${map}`, "-A", "x.ts"],
    ["test", `--import-map=${map}`],
    ["fmt"],
  ]);
  assertEquals(stderr, "");
});

Deno.test("scripts/deno.ts passes arguments after the subcommand on unchanged", async () => {
  const args = await withImportMap(["run", "--quiet", "x.ts", "run"]);
  assertEquals(args.filter((arg) => !arg.startsWith("--import-map")), [
    "run",
    "--quiet",
    "x.ts",
    "run",
  ]);
});
