import { assertEquals } from "@std/assert";
import { run } from "../lib/process.ts";
import { denoArgs, ROOT } from "../scripts/deno.ts";
import { temporaryFolder } from "./_folder.ts";

/** Copies what starts Deno into a folder, and asks it there. */
async function ask(
  folder: string,
  code: string,
  env: Record<string, string> = {},
) {
  await Deno.mkdir(`${folder}/scripts`, { recursive: true });
  await Deno.mkdir(`${folder}/lib`);
  for (const file of ["scripts/deno.ts", "lib/process.ts", "lib/errors.ts"]) {
    await Deno.copyFile(`${ROOT}/${file}`, `${folder}/${file}`);
  }
  const path = `${folder}/ask.ts`;
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

Deno.test("a project in a folder with blanks and accents is found", async () => {
  await using folder = await temporaryFolder();
  const path = `${folder.path}/my größter%20project`;
  const { stdout } = await ask(path, "console.log(ROOT)");
  assertEquals(stdout, path);
});

const SHOW = `console.log(JSON.stringify([
  await denoArgs(["run", "-A", "x.ts"]),
  await denoArgs(["test"]),
  await denoArgs(["fmt"]),
]))`;

Deno.test("without JSR every Deno gets the import map, and that is said once", async () => {
  await using folder = await temporaryFolder();
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;
  listener.close();
  const JSR_URL = `http://127.0.0.1:${port}/`;
  const { stdout, stderr } = await ask(folder.path, SHOW, { JSR_URL });
  const map = `--import-map=${folder.path}/scripts/npm_import_map.json`;
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
  await using folder = await temporaryFolder();
  await using jsr = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    () => new Response("{}"),
  );
  const JSR_URL = `http://127.0.0.1:${jsr.addr.port}/`;
  const { stdout, stderr } = await ask(folder.path, SHOW, { JSR_URL });
  assertEquals(JSON.parse(stdout), [["run", "-A", "x.ts"], ["test"], ["fmt"]]);
  assertEquals(stderr, "");
});

Deno.test("the choice is handed to child processes: they do not ask again", async () => {
  await using folder = await temporaryFolder();
  const { stdout, stderr } = await ask(
    folder.path,
    `console.log((await denoArgs(["run"])).length)`,
    { TOOLSMITH_DEV_IMPORTS: "npm", JSR_URL: "http://127.0.0.1:1/" },
  );
  assertEquals([stdout, stderr], ["2", ""]);
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
