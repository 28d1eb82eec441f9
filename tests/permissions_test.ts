/**
 * Tests the permission sets in `deno.json`. A variable that may not be read counts as
 * unset, so no other test detects a missing one.
 */
import { assertEquals } from "@std/assert";
import { PROJECT_ROOT } from "../scripts/deno.ts";

/** Variables of publish, which has no permission set. */
const PUBLISHING = ["GITHUB_ACTIONS", "GITHUB_TOKEN", "SOURCE_DATE_EPOCH"];

Deno.test("deno.json: the permission set run allows the variables and programs that lib/ names", async () => {
  const { permissions } = JSON.parse(
    await Deno.readTextFile(`${PROJECT_ROOT}/deno.json`),
  );
  const { env, run } = permissions.run as Record<string, string[]>;
  const text = (await sources(`${PROJECT_ROOT}/lib`)).join("\n");
  const variables = [...text.matchAll(/\.get\(([^()]*"[A-Z_]+"[^()]*)\)/g)]
    .flatMap(([, names]) => [...names.matchAll(/"([A-Z_]{2,})"/g)])
    .map(([, name]) => name);
  const proxies = [...text.matchAll(/"((?:[A-Z]+_PROXY)|(?:[a-z]+_proxy))"/g)]
    .map(([, name]) => name);
  // Sigstore's packages ask for a temporary directory, as Node finds it.
  const read = [...variables, ...proxies, "TMP", "TEMP"];
  assertEquals(env.toSorted(), unique(read, PUBLISHING));
  const programs = [
    ...text.matchAll(/\b(?:runProcess|spawnProcess)\("([\w-]+)"/g),
  ]
    .map(([, name]) => name);
  // `ps` is only needed to kill a hanging process where there is no /proc.
  const named = unique([...programs, "oras"], ["ps"]);
  const emulators = ["x86_64", "aarch64"].map((arch) => `qemu-system-${arch}`);
  assertEquals(run.toSorted(), unique([...named, ...emulators], []));
});

function unique(words: string[], without: string[]): string[] {
  return [...new Set(words)].filter((it) => !without.includes(it)).sort();
}

async function sources(dir: string): Promise<string[]> {
  const found: string[] = [];
  for await (const { name, isDirectory } of Deno.readDir(dir)) {
    const path = `${dir}/${name}`;
    if (isDirectory) found.push(...await sources(path));
    else if (name.endsWith(".ts")) found.push(await Deno.readTextFile(path));
  }
  return found;
}
