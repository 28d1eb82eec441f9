import { assertEquals } from "@std/assert";
import { run } from "../../lib/system/process.ts";
import { denoArgs, ROOT } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";

/** Copies what starts Deno into a directory, and asks it there. */
async function ask(
  dir: string,
  code: string,
  env: Record<string, string> = {},
) {
  await Deno.mkdir(`${dir}/scripts`, { recursive: true });
  await Deno.mkdir(`${dir}/lib/system`, { recursive: true });
  for (
    const file of [
      "scripts/deno.ts",
      "lib/system/process.ts",
      "lib/system/_pipes.ts",
      "lib/errors.ts",
    ]
  ) {
    await Deno.copyFile(`${ROOT}/${file}`, `${dir}/${file}`);
  }
  const path = `${dir}/ask.ts`;
  await Deno.writeTextFile(
    path,
    `import { denoArgs, ROOT } from "./scripts/deno.ts";\n${code}`,
  );
  const args = ["run", "--quiet", "--no-config", "-A", path];
  const { stdout, stderr } = await run(Deno.execPath(), {
    args,
    env: { NO_COLOR: "1", TOOLSMITH_DEV_IMPORTS: "", ...env },
  });
  return { stdout: stdout.trimEnd(), stderr: stderr.trimEnd() };
}

Deno.test("a project in a directory with blanks and accents is found", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/my größter%20project`;
  const { stdout } = await ask(path, "console.log(ROOT)");
  assertEquals(stdout, path);
});

const SHOW = `console.log(JSON.stringify([
  await denoArgs(["run", "-A", "x.ts"]),
  await denoArgs(["test"]),
  await denoArgs(["fmt"]),
]))`;

Deno.test("without JSR every Deno gets the import map, and that is said once", async () => {
  await using dir = await temporaryDir();
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;
  listener.close();
  const JSR_URL = `http://127.0.0.1:${port}/`;
  const { stdout, stderr } = await ask(dir.path, SHOW, { JSR_URL });
  const map = `--import-map=${dir.path}/scripts/npm/import_map.json`;
  assertEquals(JSON.parse(stdout), [
    ["run", map, "-A", "x.ts"],
    ["test", map],
    ["fmt"],
  ]);
  assertEquals(
    stderr,
    "jsr.io cannot be reached: taking @std from npm instead",
  );
});

Deno.test("with JSR nothing is added, and nothing said", async () => {
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

Deno.test("the choice is handed to child processes: they do not ask again", async () => {
  await using dir = await temporaryDir();
  const { stdout, stderr } = await ask(
    dir.path,
    `console.log((await denoArgs(["run"])).length)`,
    { TOOLSMITH_DEV_IMPORTS: "npm", JSR_URL: "http://127.0.0.1:1/" },
  );
  assertEquals([stdout, stderr], ["2", ""]);
});

Deno.test("TOOLSMITH_DEV_IMPORTS may name an import map, and nobody asks jsr.io", async () => {
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

Deno.test("what follows the subcommand stays as it is", async () => {
  const args = await denoArgs(["run", "--quiet", "x.ts", "run"]);
  assertEquals(args.filter((arg) => !arg.startsWith("--import-map")), [
    "run",
    "--quiet",
    "x.ts",
    "run",
  ]);
});
