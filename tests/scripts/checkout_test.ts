import { assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { checkoutImportMap } from "../../scripts/npm/checkout.ts";
import { VERSIONS } from "../../scripts/npm/signatures.ts";
import { temporaryDir } from "../support/directory.ts";

/** Writes the `deno.json` files of a checkout of denoland/std. */
async function checkout(dir: string, versions: Record<string, string>) {
  const names = Object.keys(versions).map((name) => name.split("/")[1]);
  const write = (path: string, content: unknown) =>
    Deno.writeTextFile(join(dir, path), JSON.stringify(content));
  await write("deno.json", { workspace: names.map((name) => `./${name}`) });
  for (const [name, version] of Object.entries(versions)) {
    const member = name.split("/")[1];
    await Deno.mkdir(join(dir, member), { recursive: true });
    const exports = name === "@std/toml"
      ? "./mod.ts"
      : { ".": "./mod.ts", "./a-b": "./sub/a_b.ts" };
    await write(`${member}/deno.json`, { name, version, exports });
  }
}

Deno.test("checkoutImportMap() maps every export to a file of the checkout, and npm packages to npm", async () => {
  await using dir = await temporaryDir();
  await checkout(dir.path, { ...VERSIONS, "@std/internal": "1.0.0" });
  const map = await checkoutImportMap(dir.path, join(dir.path, "map.json"));
  const { imports } = JSON.parse(await Deno.readTextFile(map));
  const at = (path: string) => `file://${dir.path}/${path}`;
  assertEquals(imports["@std/crypto"], at("crypto/mod.ts"));
  assertEquals(imports["@std/crypto/a-b"], at("crypto/sub/a_b.ts"));
  assertEquals(imports["@std/internal"], at("internal/mod.ts"));
  assertEquals(imports["@std/toml"], at("toml/mod.ts"));
  assertEquals(imports["fast-check"].slice(0, 4), "npm:");
});

Deno.test("checkoutImportMap() rejects a checkout whose versions deno.json does not allow", async () => {
  const wrong: [string, string][] = [
    ["1.0.9", "@std/crypto 1.0.9; deno.json: ^1.1.0"],
    ["2.0.0", "@std/crypto 2.0.0; deno.json: ^1.1.0"],
  ];
  for (const [version, message] of wrong) {
    await using dir = await temporaryDir();
    await checkout(dir.path, { ...VERSIONS, "@std/crypto": version });
    const map = join(dir.path, "map.json");
    await assertRejects(() => checkoutImportMap(dir.path, map), Error, message);
  }
  await using dir = await temporaryDir();
  const { "@std/fs": _, ...rest } = VERSIONS;
  await checkout(dir.path, rest);
  const map = join(dir.path, "map.json");
  await assertRejects(
    () => checkoutImportMap(dir.path, map),
    Error,
    "@std/fs none",
  );
});
