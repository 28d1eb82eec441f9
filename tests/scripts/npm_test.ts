import { assertEquals } from "@std/assert";
import { VERSIONS } from "../../scripts/npm/signatures.ts";
import { ROOT } from "../../scripts/deno.ts";

const read = async (path: string) =>
  JSON.parse(await Deno.readTextFile(`${ROOT}/${path}`)).imports;

Deno.test("the signatures of the standard library are those of the versions in deno.json", async () => {
  const imports: Record<string, string> = await read("deno.json");
  const std = Object.entries(imports)
    .filter(([name]) => name.startsWith("@std/"));
  const wanted = Object.entries(VERSIONS)
    .map(([name, version]) => [name, `jsr:${name}@^${version}`]);
  assertEquals(std, wanted);
});

Deno.test("npm stands in for every import, and for nothing else", async () => {
  // `@std/cli/parse-args` is of `@std/cli`, and `deno-std/` of `deno-std`.
  const names = (imports: object) =>
    Object.keys(imports).map((name) =>
      name.split("/").slice(0, name.startsWith("@") ? 2 : 1).join("/")
    );
  assertEquals(
    [...new Set(names(await read("scripts/npm/import_map.json")))],
    names(await read("deno.json")),
  );
});
